// Asks the service about images, a few at a time: TorchServe can answer them in batches, and other
// visitors do not wait for a hundred images. The edge passes on 8 uploads of an address, which
// visitors may share.

import { Problem } from "./service.js";

/** @import { Answer, AnsweredCell, predict } from "./service.js" */
/**
 * @typedef {object} Upload An image, and what is known of it. It is never modified in place.
 * @property {string} id
 * @property {File} file
 * @property {string} name
 * @property {"waiting" | "asking" | "done" | "failed" | "cancelled"} state
 * @property {string | null} problem
 * @property {string} version The version that answered.
 * @property {AnsweredCell[]} found From left to right.
 * @property {string | null} [picture] A picture of the server, if the browser can't show the file;
 *   null if there is none.
 * @property {number[] | null} size
 * @property {string | null} heatMap
 *
 * @typedef {object} Uploads
 * @property {Upload[]} all
 * @property {string} version The version that classifies all of them; "" for the default.
 * @property {(id: string, facts: Partial<Upload>) => void} update
 */

const PARALLEL = 3;
// While nothing is answered because of these, the next images would fail, too.
const FOR_ALL = ["ServiceUnavailable", "PageUnreachable"];

export class Queue {
  /** @type {Map<string, AbortController>} The requests in progress, by the id of the image. */
  #requests = new Map();
  #answers = 0;
  #uploads;
  #predict;

  /** @param {Uploads} uploads @param {typeof predict} ask */
  constructor(uploads, ask) {
    this.#uploads = uploads;
    this.#predict = ask;
  }

  start() {
    for (const image of this.#uploads.all) {
      if (this.#requests.size >= PARALLEL) return;
      if (image.state === "waiting") this.#ask(image);
    }
  }

  /** @param {Upload[]} images */
  cancel(images) {
    for (const { id } of images) {
      this.#requests.get(id)?.abort();
      this.#requests.delete(id);
      this.#uploads.update(id, { state: "cancelled" });
    }
  }

  /** @param {Upload} image */
  async #ask(image) {
    const abort = new AbortController();
    const answers = this.#answers;
    this.#requests.set(image.id, abort);
    this.#uploads.update(image.id, { state: "asking" });
    try {
      const answer = await this.#predict(image.file, this.#uploads.version, abort.signal);
      if (!abort.signal.aborted) this.#answered(image, answer);
    } catch (error) {
      if (!abort.signal.aborted) this.#failed(image, error, answers === this.#answers);
    }
    // It may have been cancelled and sent again.
    if (this.#requests.get(image.id) === abort) this.#requests.delete(image.id);
    this.start();
  }

  /** @param {Upload} image @param {Answer} answer */
  #answered(image, answer) {
    this.#answers++;
    const { version } = this.#uploads;
    // The default changed between two answers. All images of a count are of one version.
    if (version && answer.version !== version) this.#uploads.update(image.id, { state: "waiting" });
    else this.#uploads.update(image.id, { state: "done", ...factsOf(answer) });
  }

  /**
   * @param {Upload} image
   * @param {unknown} error
   * @param {boolean} noneAnswered Whether no image was answered while this one was tried.
   */
  #failed(image, error, noneAnswered) {
    if (!(error instanceof Problem)) console.error(error);
    const problem = error instanceof Problem ? error.kind : "ServiceError";
    this.#uploads.update(image.id, { state: "failed", problem });
    if (!noneAnswered || !FOR_ALL.includes(problem)) return;
    for (const { id, state } of this.#uploads.all) {
      if (state === "waiting") this.#uploads.update(id, { state: "failed", problem });
    }
  }
}

/** @param {Answer} answer */
function factsOf(answer) {
  return {
    version: answer.version,
    found: answer.cells.toSorted((a, b) => (a.box?.[0] ?? 0) - (b.box?.[0] ?? 0)),
    picture: answer.picture,
    size: answer.size ?? null,
  };
}
