// A count: the images, their cells and the visitor's labels, with undo and redo.

import { adapt } from "./adaptation.js";
import { BLANK } from "./fields.js";
import { History } from "./history.js";
import { Queue } from "./queue.js";
import { predict } from "./service.js";

/** @import { Head } from "./adaptation.js" */
/** @import { Report } from "./fields.js" */
/** @import { Step } from "./history.js" */
/** @import { Upload } from "./queue.js" */
/** @import { AnsweredCell } from "./service.js" */
/**
 * @typedef {object} Count What undo and redo change. It is never modified in place.
 * @property {string} id Counts have images of their own: another version may answer them.
 * @property {string} wanted The version to ask, until the first answer decides; "" for the default.
 * @property {readonly string[]} images By id, in the order that they were added.
 * @property {Readonly<Record<string, string>>} labels The visitor's, by the id of the cell.
 * @property {Report} report
 * @property {Head} [head] What was learned from the labels.
 *
 * @typedef {Upload & { cells: Cell[] }} Image
 * @typedef {AnsweredCell & {
 *   id: string, image: Upload, of: number, index: number, own: string | null, confidence: number,
 * }} Cell
 * @typedef {Cell | Image} Entry A tile of the gallery: a cell, or an image without an answer.
 */

/** @type {Count} */
const EMPTY = { id: "", wanted: "", images: [], labels: {}, report: BLANK };

export class Collection extends EventTarget {
  /** @type {History<Count>} */
  #history = new History(EMPTY);
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
      get version() { return collection.version ?? collection.count.wanted; },
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
    return this.uploads.map((upload) => toImage(upload, this.count));
  }

  get entries() {
    return entriesOf(this.images);
  }

  /** @param {string} id An image. */
  cellsOf(id) {
    return this.images.find((image) => image.id === id)?.cells ?? [];
  }

  // Only the reference ranges are the laboratory's, not the sample's.
  get #empty() {
    return { ...EMPTY, report: { ...BLANK, ranges: this.count.report.ranges } };
  }

  /** The version of the count, or null before the first answer. */
  get version() {
    return this.uploads.find((image) => image.state === "done")?.version ?? null;
  }

  /** What was learned from the labels, or null. */
  get head() {
    return this.count.head ?? null;
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
   * Add files. Return the id of the first new image, how many files were already there, and how many
   * more than the count may have.
   * @param {File[]} files
   * @param {string} wanted The version to ask, if these are the first images.
   * @param {{ images: number, bytes: number }} most
   */
  async add(files, wanted, most) {
    /** @type {string[]} */
    const digests = [];
    // One after another: together they would be in memory at the same time.
    for (const file of files) digests.push(await digestOf(file, most.bytes));
    const count = this.uploads.length ? this.count : { ...this.#empty, id: newId(), wanted };
    /** @type {Map<string, File>} */
    const found = new Map();
    for (const [at, file] of files.entries()) {
      const id = `${count.id}-${digests[at]}`;
      if (!count.images.includes(id) && !found.has(id)) found.set(id, file);
    }
    const added = [...found].slice(0, Math.max(0, most.images - count.images.length));
    for (const [id, file] of added) {
      if (!this.#uploads.has(id)) this.#uploads.set(id, toUpload(id, file, most.bytes));
    }
    const images = [...count.images, ...added.map(([id]) => id)];
    if (added.length) this.#change("added", added.length, { ...count, images });
    return {
      first: added.length ? added[0][0] : null,
      repeated: files.length - found.size,
      refused: found.size - added.length,
    };
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
    this.#change("cleared", this.uploads.length, this.#empty);
  }

  /**
   * Label cells; a label of null removes the visitor's label.
   * @param {Cell[]} cells
   * @param {(cell: Cell) => string | null} labelOf
   */
  label(cells, labelOf) {
    const labels = { ...this.count.labels };
    const changed = cells.filter((cell) => labelOf(cell) !== (labels[cell.id] ?? null));
    if (!changed.length) return;
    for (const cell of changed) {
      const label = labelOf(cell);
      if (label) labels[cell.id] = label;
      else delete labels[cell.id];
    }
    const name = changed.every(labelOf) ? "labelled" : "unlabelled";
    this.#change(name, changed.length, { ...this.count, labels });
  }

  /** Store what a person wrote on the report. @param {Report} report */
  describe(report) {
    if (JSON.stringify(report) === JSON.stringify(this.count.report)) return;
    this.#change("described", 1, { ...this.count, report });
  }

  /** Answer the cells without a label by a head. @param {Head} head @param {number} learned */
  adaptTo(head, learned) {
    this.#change("taught", learned, { ...this.count, head });
  }

  /** Answer by the head, or by the model alone. @param {boolean} on */
  useHead(on) {
    const { head } = this;
    if (head) this.#change(on ? "adapted" : "unadapted", 0, { ...this.count, head: { ...head, on } });
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
   * Go on with a count that was saved, and ask about its images without an answer.
   * @param {Count} saved
   * @param {Upload[]} uploads
   */
  restore(saved, uploads) {
    // Older counts have no report.
    const count = { ...EMPTY, ...saved };
    for (const upload of uploads) {
      const state = upload.state === "asking" ? "waiting" : upload.state;
      this.#uploads.set(upload.id, { ...upload, state });
    }
    if (this.uploads.length) {
      this.cancel();
      this.#change("opened", count.images.length, count);
    } else {
      this.#history = new History(count);
      this.#queue.start();
      this.#announce();
    }
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

const newId = () => Math.random().toString(36).slice(2);

/**
 * Return the SHA-256 of a file, so that the same file is added once. Without encryption browsers do
 * not offer it: a file is then the same if its name, size and date are. So is one that is too large.
 * @param {File} file
 * @param {number} maxBytes
 */
async function digestOf(file, maxBytes) {
  const known = [file.name, file.size, file.lastModified].join("-");
  if (!globalThis.crypto.subtle || file.size > maxBytes) return known;
  const bytes = await file.arrayBuffer().catch(() => new TextEncoder().encode(known));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {Upload} upload @param {Count} count @returns {Image} */
function toImage(upload, { labels, head }) {
  const cells = upload.found.map((found, index) => {
    const id = `${upload.id}-${index}`;
    const cell = head?.on && !labels[id] ? adapt(found, head) : found;
    const confidence = Math.max(...Object.values(cell.probabilities));
    const of = upload.found.length;
    return { ...cell, id, image: upload, of, index, own: labels[id] ?? null, confidence };
  });
  return { ...upload, cells };
}

/** @param {Image[]} images @returns {Entry[]} */
export const entriesOf = (images) => images.flatMap(
  /** @returns {Entry[]} */ (image) => (image.cells.length ? image.cells : [image]),
);

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
