// The images of this visit, the cells found in them, and the labels that a person gave. It asks
// about a few images at a time, so that TorchServe can answer them in batches and nobody else waits.

import { Problem, predict } from "./service.js";

// In the model's order.
export const CLASSES = ["EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL"];

const PARALLEL = 6;
// An image fails alone; but without a model or a server the next ones would only fail later.
const FOR_ALL = ["ServiceUnavailable", "PageUnreachable"];

export class Collection extends EventTarget {
  images = [];
  #active = 0;
  #created = 0;

  // An entry of the gallery: a cell, or an image that has no answer yet.
  get entries() {
    return this.images.flatMap((image) => (image.cells.length ? image.cells : [image]));
  }

  get open() {
    return this.images.filter((image) => ["waiting", "asking"].includes(image.state));
  }

  get failed() {
    return this.images.filter((image) => ["failed", "cancelled"].includes(image.state));
  }

  add(files, version, maxBytes) {
    const added = files.map((file) => ({
      id: `i${++this.#created}`, file, name: file.name || "image", version, cells: [],
      address: URL.createObjectURL(file), shownAddress: null, size: null, heatMap: null,
      state: "waiting", problem: null, abort: null,
    }));
    for (const image of added) {
      if (image.file.size > maxBytes) this.#fail(image, "ImageTooLarge");
      else if (!image.file.size) this.#fail(image, "EmptyImage");
    }
    this.images.push(...added);
    this.#start();
    return added[0];
  }

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

  // `labelOf` tells a cell's label; null takes it back.
  label(cells, labelOf) {
    for (const cell of cells) cell.own = labelOf(cell);
    this.#changed();
  }

  #start() {
    const waiting = this.images.filter((image) => image.state === "waiting");
    while (this.#active < PARALLEL && waiting.length) this.#ask(waiting.shift());
    this.#changed();
  }

  async #ask(image) {
    this.#active++;
    Object.assign(image, { state: "asking", abort: new AbortController() });
    const { signal } = image.abort;
    try {
      const answer = await predict(image.file, image.version, signal);
      if (!signal.aborted) this.#answered(image, answer);
    } catch (error) {
      if (!signal.aborted) this.#failed(image, error);
    }
    this.#active--;
    this.#start();
  }

  #answered(image, answer) {
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

  #failed(image, error) {
    if (!(error instanceof Problem)) console.error(error);
    const kind = error instanceof Problem ? error.kind : "ServiceError";
    const all = FOR_ALL.includes(kind) ? this.images.filter((each) => each.state === "waiting") : [];
    for (const each of [image, ...all]) this.#fail(each, kind);
  }

  #fail(image, kind) {
    Object.assign(image, { state: "failed", problem: kind });
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

// The group that an entry is shown and counted in: a person's label goes before the model's.
export function groupOf(entry) {
  if (entry.cells) return "open";
  if (entry.own) return entry.own;
  return { confident: entry.label, uncertain: "doubtful", rejected: "OTHER" }[entry.verdict];
}
