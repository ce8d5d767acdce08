// The images of this visit, their cells and the visitor's labels. It sends a few images at a time:
// TorchServe can answer them in batches, and other visitors do not wait for a hundred images. The edge
// passes on 8 uploads of an address, which visitors may share.

import { Problem, predict } from "./service.js";

/** @import { Answer, AnsweredCell } from "./service.js" */
/**
 * @typedef {AnsweredCell & {
 *   id: string, image: Upload, index: number, own: string | null, confidence: number,
 * }} Cell
 * @typedef {object} Upload
 * @property {string} id
 * @property {File} file
 * @property {string} name
 * @property {string} version
 * @property {Cell[]} cells
 * @property {string} address
 * @property {string | null} shownAddress
 * @property {number[] | null} size
 * @property {string | null} heatMap
 * @property {boolean} explaining
 * @property {"waiting" | "asking" | "done" | "failed" | "cancelled"} state
 * @property {string | null} problem
 * @property {AbortController | null} abort
 * @typedef {Cell | Upload} Entry A tile of the gallery: a cell, or an image without an answer.
 */

const PARALLEL = 3;
// While nothing is answered because of these, the next images would fail, too.
const FOR_ALL = ["ServiceUnavailable", "PageUnreachable"];

export class Collection extends EventTarget {
  /** @type {Upload[]} */
  images = [];
  #active = 0;
  #answers = 0;
  #created = 0;
  #predict;

  constructor(ask = predict) {
    super();
    this.#predict = ask;
  }

  get entries() {
    return this.images.flatMap(
      /** @returns {Entry[]} */ (image) => (image.cells.length ? image.cells : [image]),
    );
  }

  /** The cells that the visitor labelled. */
  get labelled() {
    return this.images.flatMap((image) => image.cells.filter((cell) => cell.own));
  }

  get open() {
    return this.images.filter((image) => ["waiting", "asking"].includes(image.state));
  }

  get failed() {
    return this.images.filter((image) => ["failed", "cancelled"].includes(image.state));
  }

  /**
   * Add files and return the first new image.
   * @param {File[]} files
   * @param {string} version
   * @param {number} maxBytes
   */
  add(files, version, maxBytes) {
    /** @type {Upload[]} */
    const added = files.map((file) => ({
      id: `i${++this.#created}`, file, name: file.name || "image", version, cells: [],
      address: URL.createObjectURL(file), shownAddress: null, size: null, heatMap: null,
      explaining: false, state: "waiting", problem: null, abort: null,
    }));
    for (const image of added) {
      if (image.file.size > maxBytes) this.#fail(image, "ImageTooLarge");
      else if (!image.file.size) this.#fail(image, "EmptyImage");
    }
    this.images.push(...added);
    this.#start();
    return added[0];
  }

  /** @param {Upload[]} images */
  retry(images) {
    for (const image of images) Object.assign(image, { state: "waiting", problem: null });
    this.#start();
  }

  cancel() {
    for (const image of this.open) {
      image.abort?.abort();
      image.state = "cancelled";
    }
    this.#changed();
  }

  clear() {
    this.cancel();
    for (const image of this.images) URL.revokeObjectURL(image.address);
    this.images = [];
    this.#changed();
  }

  /**
   * Label cells; a label of null removes the visitor's label.
   * @param {Cell[]} cells
   * @param {(cell: Cell) => string | null} labelOf
   */
  label(cells, labelOf) {
    for (const cell of cells) cell.own = labelOf(cell);
    this.#changed();
  }

  #start() {
    const waiting = this.images.filter((image) => image.state === "waiting");
    for (const image of waiting.slice(0, PARALLEL - this.#active)) this.#ask(image);
    this.#changed();
  }

  /** @param {Upload} image */
  async #ask(image) {
    this.#active++;
    image.state = "asking";
    image.abort = new AbortController();
    const { signal } = image.abort;
    const answers = this.#answers;
    try {
      const answer = await this.#predict(image.file, image.version, signal);
      if (!signal.aborted) this.#answered(image, answer);
    } catch (error) {
      if (!signal.aborted) this.#failed(image, error, answers === this.#answers);
    }
    this.#active--;
    this.#start();
  }

  /** @param {Upload} image @param {Answer} answer */
  #answered(image, answer) {
    this.#answers++;
    const found = answer.cells.toSorted((a, b) => (a.box?.[0] ?? 0) - (b.box?.[0] ?? 0));
    Object.assign(image, {
      state: "done",
      version: answer.version,
      shownAddress: answer.picture === undefined ? image.address : answer.picture,
      size: answer.size ?? null,
      cells: found.map((cell, index) => ({
        ...cell, id: `${image.id}c${index}`, image, index, own: null,
        confidence: Math.max(...Object.values(cell.probabilities)),
      })),
    });
  }

  /**
   * @param {Upload} image
   * @param {unknown} error
   * @param {boolean} noneAnswered Whether no image was answered while this one was tried.
   */
  #failed(image, error, noneAnswered) {
    if (!(error instanceof Problem)) console.error(error);
    const kind = error instanceof Problem ? error.kind : "ServiceError";
    this.#fail(image, kind);
    if (!noneAnswered || !FOR_ALL.includes(kind)) return;
    for (const each of this.images) if (each.state === "waiting") this.#fail(each, kind);
  }

  /** @param {Upload} image @param {string} kind */
  #fail(image, kind) {
    Object.assign(image, { state: "failed", problem: kind });
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/**
 * @param {Entry} entry
 * @returns {entry is Cell}
 */
export const isCell = (entry) => "image" in entry;

/**
 * Return all classes that the answers name. Versions may know different ones.
 * @param {Entry[]} entries
 */
export const classesOf = (entries) => [...new Set(
  entries.flatMap((entry) => (isCell(entry) ? Object.keys(entry.probabilities) : [])),
)];

/**
 * Return the group that shows and counts an entry. The visitor's label overrides the model's.
 * @param {Entry} entry
 */
export function groupOf(entry) {
  if (!isCell(entry)) return "open";
  if (entry.own) return entry.own;
  if (entry.verdict === "uncertain") return "uncertain";
  return entry.label ?? "OTHER";
}
