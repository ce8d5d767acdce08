// The page's server: one request per image, retried if that can help.

import { fetchPage } from "./dom.js";

/**
 * @typedef {object} AnsweredCell
 * @property {string | null} label
 * @property {"confident" | "uncertain" | "rejected"} verdict
 * @property {Record<string, number>} probabilities
 * @property {number[] | null} box
 * @property {boolean} found
 * @typedef {object} Answer
 * @property {string} version
 * @property {AnsweredCell[]} cells
 * @property {string | null} [picture]
 * @property {number[] | null} [size]
 */

/** @type {Record<string, number>} */
const ATTEMPTS = { ServiceBusy: 5, TooManyRequests: 4, ExpiredForm: 2 };
const LONGEST_PAUSE = 60;

export class Problem extends Error {
  /** @param {string} kind */
  constructor(kind) {
    super(kind);
    this.kind = kind;
  }
}

/**
 * @param {File} file
 * @param {string} version
 * @param {AbortSignal} signal
 * @returns {Promise<Answer>}
 */
export const predict = (file, version, signal) => ask("/api/predictions", file, version, signal);

/**
 * @param {File} file
 * @param {string} version
 * @returns {Promise<string>}
 */
export const explain = async (file, version) =>
  (await ask("/api/explanations", file, version, new AbortController().signal)).heat_map;

/** @param {string} address @param {File} file @param {string} version @param {AbortSignal} signal */
async function ask(address, file, version, signal) {
  for (let attempt = 1; ; attempt++) {
    const response = await send(address, file, version, signal);
    const answer = await read(response);
    if (response.ok && answer) return answer;
    const kind = answer?.type ?? "ServiceError";
    if (attempt >= (ATTEMPTS[kind] ?? 1)) throw new Problem(kind);
    // The server was restarted after it sent this page.
    if (kind === "ExpiredForm") await renewToken(signal);
    else await pause(secondsToWait(kind, attempt, response), signal);
  }
}

/** @param {string} address @param {File} file @param {string} version @param {AbortSignal} signal */
async function send(address, file, version, signal) {
  const body = new FormData();
  body.set("image", file, file.name || "image");
  if (version) body.set("version", version);
  const headers = { "X-CSRFToken": tokens(document)[0].value };
  try {
    return await fetch(address, { method: "POST", body, headers, signal });
  } catch (error) {
    if (signal.aborted) throw error;
    // A file that was moved or changed after it was chosen fails in the same way.
    throw new Problem((await readable(file)) ? "PageUnreachable" : "CorruptImage");
  }
}

/** @param {Document} page @returns {HTMLInputElement[]} */
const tokens = (page) => [.../** @type {any} */ (page.getElementsByName("csrf_token"))];

/** @param {Response} response */
const read = (response) => response.json().catch(() => null);

/** @param {File} file */
const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

/** @param {AbortSignal} signal */
async function renewToken(signal) {
  const [fresh] = tokens(await fetchPage("/", signal));
  for (const field of tokens(document)) field.value = fresh.value;
}

/** @param {string} kind @param {number} attempt @param {Response} response */
function secondsToWait(kind, attempt, response) {
  // The model's queue empties within a second; the rate limit reports how long to wait.
  if (kind === "ServiceBusy") return 0.25 * 2 ** attempt * (0.5 + Math.random());
  return Math.min(Number(response.headers.get("Retry-After")) || 5, LONGEST_PAUSE);
}

/** @param {number} seconds @param {AbortSignal} signal @returns {Promise<void>} */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
