// The page's server: one request per image, retried if that can help.

import { fetchPage } from "./dom.js";
import { fetchPatiently } from "./retry.js";

/** @import { Clock } from "./retry.js" */
/**
 * @typedef {object} AnsweredCell
 * @property {string | null} label
 * @property {"confident" | "uncertain" | "rejected"} verdict
 * @property {Record<string, number>} probabilities
 * @property {number[] | null} box
 * @property {boolean} found
 * @property {string} [embedding] Packed, if the version can be adapted.
 * @property {boolean} [adapted] Whether a head of this count answered.
 * @typedef {object} Answer
 * @property {string} version
 * @property {AnsweredCell[]} cells
 * @property {string | null} [picture]
 * @property {number[] | null} [size]
 */

const PREDICTIONS = "/api/predictions";
// Another tab may replace the session that the first renewal began.
const MOST_RENEWALS = 2;

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
 * @param {Clock} [clock]
 * @returns {Promise<Answer>}
 */
export const predict = (file, version, signal, clock) =>
  ask(PREDICTIONS, file, version, signal, clock);

/**
 * @param {File} file
 * @param {string} version
 * @returns {Promise<string>}
 */
export const explain = async (file, version) =>
  (await ask("/api/explanations", file, version)).heat_map;

/**
 * @param {string} address
 * @param {File} file
 * @param {string} version
 * @param {AbortSignal} [signal]
 * @param {Clock} [clock]
 */
async function ask(address, file, version, signal, clock) {
  for (let renewals = 0; ; renewals++) {
    const token = tokens(document)[0].value;
    const response = await send(address, file, version, token, signal, clock);
    const answer = await response.json().catch(() => null);
    if (response.ok && answer) return answer;
    const kind = answer?.type ?? "ServiceError";
    if (kind !== "ExpiredForm" || renewals === MOST_RENEWALS) throw new Problem(kind);
    // The server was restarted after it sent this page, or the cookies were deleted.
    await renew(token, clock);
  }
}

/**
 * @param {string} address
 * @param {File} file
 * @param {string} version
 * @param {string} token
 * @param {AbortSignal} [signal]
 * @param {Clock} [clock]
 */
async function send(address, file, version, token, signal, clock) {
  // Without this check, a file that was moved or changed after it was chosen looks like a network error.
  if (!(await readable(file))) throw new Problem("CorruptImage");
  const body = new FormData();
  body.set("image", file, file.name || "image");
  if (version) body.set("version", version);
  if (address === PREDICTIONS) body.set("embedding", "true");
  const headers = { "X-CSRFToken": token };
  try {
    return await fetchPatiently(address, { method: "POST", body, headers, signal }, clock);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem((await readable(file)) ? "PageUnreachable" : "CorruptImage");
  }
}

/** @param {Document} page @returns {HTMLInputElement[]} */
const tokens = (page) => [.../** @type {any} */ (page.getElementsByName("csrf_token"))];

/** @param {File} file */
const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

/** @type {Promise<void> | null} */
let renewal = null;

/**
 * Renew the token of the forms. Requests in parallel share a renewal: each would begin a session of
 * its own, and the browser keeps the cookie of only one.
 * @param {string} refused
 * @param {Clock} [clock]
 */
async function renew(refused, clock) {
  // Another request has renewed it since this one was sent.
  if (tokens(document)[0].value !== refused) return;
  renewal ??= renewTokens(clock).finally(() => { renewal = null; });
  await renewal;
}

/** @param {Clock} [clock] */
async function renewTokens(clock) {
  try {
    const [fresh] = tokens(await fetchPage("/", clock));
    for (const field of tokens(document)) field.value = fresh.value;
  } catch {
    throw new Problem("PageUnreachable");
  }
}
