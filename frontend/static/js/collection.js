// A count: the images, their cells and the visitor's labels, with undo and redo.

import { History } from "./history.js";
import { Queue } from "./queue.js";
import { predict } from "./service.js";

/** @import { Step } from "./history.js" */
/** @import { Upload } from "./queue.js" */
/** @import { AnsweredCell } from "./service.js" */
/**
 * @typedef {object} Count What undo and redo change. It is never modified in place.
 * @property {number} number Counts have images of their own: another version may answer them.
 * @property {readonly string[]} images By id, in the order that they were added.
 * @property {Readonly<Record<string, string>>} labels The visitor's, by the id of the cell.
 *
 * @typedef {Upload & { cells: Cell[] }} Image
 * @typedef {AnsweredCell & {
 *   id: string, image: Upload, of: number, index: number, own: string | null, confidence: number,
 * }} Cell
 * @typedef {Cell | Image} Entry A tile of the gallery: a cell, or an image without an answer.
 */

/** @type {Count} */
const FIRST = { number: 0, images: [], labels: {} };

export class Collection extends EventTarget {
  /** The version to ask, until the first answer decides. */
  wanted = "";
  /** @type {History<Count>} */
  #history = new History(FIRST);
  #counts = 1;
  /** @type {Map<string, Upload>} */
  #uploads = new Map();
  /** @type {Set<string>} The images that changed since `takeChanges`. */
  #changed = new Set();
  #queue;

  constructor(ask = predict) {
    super();
    const collection = this;
    this.#queue = new Queue({
      get all() { return collection.uploads; },
      get version() { return collection.version ?? collection.wanted; },
      update: (id, facts) => this.update(id, facts),
    }, ask);
  }

  get count() {
    return this.#history.value;
  }

  /** The images without their cells. */
  get uploads() {
    return this.count.images.flatMap((id) => this.#uploads.get(id) ?? []);
  }

  get images() {
    return this.uploads.map((upload) => toImage(upload, this.count.labels));
  }

  get entries() {
    return this.images.flatMap(
      /** @returns {Entry[]} */ (image) => (image.cells.length ? image.cells : [image]),
    );
  }

  /** @param {string} id An image. */
  cellsOf(id) {
    return this.images.find((image) => image.id === id)?.cells ?? [];
  }

  /** The version of the count, or null before the first answer. */
  get version() {
    return this.uploads.find((image) => image.state === "done")?.version ?? null;
  }

  /** The cells that the visitor labelled. */
  get labelled() {
    return this.images.flatMap((image) => image.cells.filter((cell) => cell.own));
  }

  get open() {
    return this.uploads.filter((image) => ["waiting", "asking"].includes(image.state));
  }

  get failed() {
    return this.uploads.filter((image) => ["failed", "cancelled"].includes(image.state));
  }

  get canUndo() {
    return this.#history.canUndo;
  }

  get canRedo() {
    return this.#history.canRedo;
  }

  /**
   * Add files. Return the id of the first new image, and how many files were already there.
   * @param {File[]} files
   * @param {number} maxBytes
   */
  async add(files, maxBytes) {
    const digests = await Promise.all(files.map(digestOf));
    const { count } = this;
    const uploads = files.map((file, at) => toUpload(`${count.number}-${digests[at]}`, file, maxBytes));
    for (const upload of uploads) {
      if (!this.#uploads.has(upload.id)) this.#uploads.set(upload.id, upload);
    }
    const images = [...new Set([...count.images, ...uploads.map(({ id }) => id)])];
    const added = images.slice(count.images.length);
    if (added.length) this.#change("added", added.length, { ...count, images });
    this.#queue.start();
    return { first: added[0] ?? null, repeated: files.length - added.length };
  }

  /** @param {Upload[]} images */
  retry(images) {
    for (const { id } of images) this.update(id, { state: "waiting", problem: null });
    this.#queue.start();
  }

  cancel() {
    this.#queue.cancel(this.open);
  }

  clear() {
    this.cancel();
    this.#change("cleared", this.uploads.length, { ...FIRST, number: this.#counts++ });
  }

  /**
   * Label cells; a label of null removes the visitor's label.
   * @param {Cell[]} cells
   * @param {(cell: Cell) => string | null} labelOf
   */
  label(cells, labelOf) {
    const { count } = this;
    const labels = { ...count.labels };
    for (const cell of cells) {
      const label = labelOf(cell);
      if (label) labels[cell.id] = label;
      else delete labels[cell.id];
    }
    this.#change("labelled", cells.length, { ...count, labels });
  }

  undo() {
    this.#step(this.#history.undo(), "undone");
  }

  redo() {
    this.#step(this.#history.redo(), "redone");
  }

  /**
   * Store what became known of an image.
   * @param {string} id
   * @param {Partial<Upload>} facts
   */
  update(id, facts) {
    const upload = this.#uploads.get(id);
    if (!upload) return;
    this.#uploads.set(id, { ...upload, ...facts });
    this.#changed.add(id);
    this.#announce();
  }

  /** Return the ids of the images that changed since the last call. */
  takeChanges() {
    const changed = this.#changed;
    this.#changed = new Set();
    return changed;
  }

  /**
   * Replace the count by one that was saved, and ask about its images without an answer.
   * @param {Count} count
   * @param {Upload[]} uploads
   */
  restore(count, uploads) {
    for (const upload of uploads) {
      const state = upload.state === "asking" ? "waiting" : upload.state;
      this.#uploads.set(upload.id, { ...upload, state });
    }
    this.#history = new History(count);
    this.#counts = Math.max(this.#counts, count.number + 1);
    this.#queue.start();
    this.#announce();
  }

  /** @param {string} name @param {number} size @param {Count} count */
  #change(name, size, count) {
    this.#history.change({ name, size }, count);
    this.#step({ name, size }, "done");
  }

  /** @param {Step | null} step @param {"done" | "undone" | "redone"} how */
  #step(step, how) {
    if (!step) return;
    this.dispatchEvent(new CustomEvent("step", { detail: { ...step, how } }));
    this.#queue.start();
    this.#announce();
  }

  #announce() {
    this.dispatchEvent(new Event("change"));
  }
}

/**
 * @param {string} id
 * @param {File} file
 * @param {number} maxBytes
 * @returns {Upload}
 */
function toUpload(id, file, maxBytes) {
  const problem = file.size > maxBytes ? "ImageTooLarge" : file.size ? null : "EmptyImage";
  return {
    id, file, name: file.name || "image", state: problem ? "failed" : "waiting",
    problem, version: "", found: [], size: null, heatMap: null,
  };
}

/**
 * Return the SHA-256 of a file, so that the same file is added once. Without encryption browsers do
 * not offer it: a file is then the same if its name, size and date are.
 * @param {File} file
 */
async function digestOf(file) {
  const known = [file.name, file.size, file.lastModified].join("-");
  if (!globalThis.crypto.subtle) return known;
  const bytes = await file.arrayBuffer().catch(() => new TextEncoder().encode(known));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {Upload} upload @param {Readonly<Record<string, string>>} labels @returns {Image} */
function toImage(upload, labels) {
  const cells = upload.found.map((cell, index) => {
    const id = `${upload.id}-${index}`;
    const confidence = Math.max(...Object.values(cell.probabilities));
    const of = upload.found.length;
    return { ...cell, id, image: upload, of, index, own: labels[id] ?? null, confidence };
  });
  return { ...upload, cells };
}

/**
 * @param {Entry} entry
 * @returns {entry is Cell}
 */
export const isCell = (entry) => "image" in entry;

/**
 * Return the classes of the version that answered, or none before the first answer.
 * @param {Entry[]} entries
 */
export function classesOf(entries) {
  const cell = entries.find(isCell);
  return cell ? Object.keys(cell.probabilities) : [];
}

/**
 * Return the group that shows and counts an entry. The visitor's label overrides the model's.
 * @param {Entry} entry
 */
export function groupOf(entry) {
  if (!isCell(entry)) return "open";
  if (entry.own) return entry.own;
  if (!entry.found) return "none";
  if (entry.verdict === "uncertain") return "uncertain";
  return entry.label ?? "rejected";
}
