// Saves a count on this computer after each change, from one tab at a time.

import { clear, load, save } from "./storage.js";

/** @import { Collection } from "./collection.js" */

const OFF = "bloodcells-not-saved", LOCK = "bloodcells-count";

export class Autosave extends EventTarget {
  /** @type {"off" | "elsewhere" | "saving" | "saved" | "failed"} */
  state = "off";
  #collection;
  #again = false;
  /** @type {Promise<boolean> | null} */
  #lock = null;

  get isOn() {
    return this.state !== "off";
  }

  /** @param {Collection} collection */
  constructor(collection) {
    super();
    this.#collection = collection;
    collection.addEventListener("change", () => this.#save());
  }

  /** Restore the saved count, and save from now on; return whether there was any. */
  async start() {
    if (localStorage.getItem(OFF) !== null) return false;
    await this.#begin();
    const saved = this.state === "saved" ? await load().catch(() => null) : null;
    // A count that began in the meantime stays.
    if (!saved?.count.images.length || this.#collection.uploads.length) return false;
    this.#collection.restore(saved.count, saved.uploads);
    return true;
  }

  /** Save from now on, or remove what was saved from this computer. @param {boolean} on */
  async turn(on) {
    if (on) {
      localStorage.removeItem(OFF);
      await this.#begin();
      await this.#save();
    } else {
      localStorage.setItem(OFF, "");
      this.#become("off");
      await clear();
    }
  }

  async #begin() {
    this.#lock ??= lock();
    this.#become((await this.#lock) ? "saved" : "elsewhere");
  }

  async #save() {
    if (["off", "elsewhere"].includes(this.state)) return;
    this.#again = true;
    if (this.state === "saving") return;
    this.#become("saving");
    let done = true;
    while (this.#again) {
      this.#again = false;
      const { count, uploads } = this.#collection;
      done = await save(count, uploads, this.#collection.takeChanges()).then(() => true, () => false);
    }
    if (this.isOn) this.#become(done ? "saved" : "failed");
  }

  /** @param {typeof this.state} state */
  #become(state) {
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}

// Two tabs would overwrite each other's count. The first keeps the lock until it is closed.
/** @returns {Promise<boolean>} */
const lock = () => new Promise((resolve) => {
  if (!navigator.locks) return resolve(true);
  navigator.locks.request(LOCK, { ifAvailable: true }, (held) => {
    resolve(held !== null);
    return held && new Promise(() => {});
  });
});
