// Saves a count on this computer after each change, from one tab at a time.

import { clear, load, save } from "./storage.js";

/** @import { Collection } from "./collection.js" */

const OFF = "bloodcells-not-saved", LOCK = "bloodcells-count";

export class Autosave extends EventTarget {
  /** @type {"off" | "insecure" | "elsewhere" | "saving" | "saved" | "failed"} */
  state = "off";
  #collection;
  /** @type {Set<string>} The images that changed since they were saved. */
  #changed = new Set();
  #again = false;
  #locked = false;

  /** @param {Collection} collection */
  constructor(collection) {
    super();
    this.#collection = collection;
    collection.addEventListener("change", () => this.#save());
  }

  get isOn() {
    return this.state !== "off";
  }

  /** Whether this tab saves, or could. */
  get isPossible() {
    return !["insecure", "elsewhere"].includes(this.state);
  }

  /** Restore the saved count, and save from now on. */
  start() {
    if (localStorage.getItem(OFF) !== null) return;
    // Two tabs would overwrite each other's count, and only on encrypted pages can they take turns.
    if (!navigator.locks) return this.#become("insecure");
    this.#become("elsewhere");
    navigator.locks.request(LOCK, () => {
      this.#locked = true;
      this.#restore();
      // Until the tab is closed.
      return new Promise(() => {});
    });
  }

  /** Save from now on, or remove what was saved from this computer. @param {boolean} on */
  async turn(on) {
    if (on) {
      localStorage.removeItem(OFF);
      if (!this.#locked) return this.start();
      this.#become("saved");
      await this.#save();
    } else {
      localStorage.setItem(OFF, "");
      this.state = "off";
      await clear();
      this.#become("off");
    }
  }

  async #restore() {
    try {
      const saved = await load();
      // A count that began in the meantime stays.
      if (saved && !this.#collection.uploads.length) {
        this.#collection.restore(saved.count, saved.uploads);
      }
      this.#become("saved");
      await this.#save();
    } catch {
      this.#become("failed");
    }
  }

  async #save() {
    if (!["saving", "saved", "failed"].includes(this.state)) return;
    this.#again = true;
    if (this.state === "saving") return;
    this.#become("saving");
    let done = true;
    while (this.#again && this.isOn) {
      this.#again = false;
      for (const id of this.#collection.takeChanges()) this.#changed.add(id);
      const { count, uploads } = this.#collection;
      done = await save(count, uploads, this.#changed).then(() => true, () => false);
      if (done) this.#changed.clear();
    }
    if (this.isOn) this.#become(done ? "saved" : "failed");
  }

  /** @param {typeof this.state} state */
  #become(state) {
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}
