// Requests that are sent again while the server is busy, restarts or cannot be reached.

/**
 * @typedef {object} Clock
 * @property {() => number} now The time in seconds.
 * @property {(seconds: number, signal?: AbortSignal | null) => Promise<void>} sleep
 * @property {() => number} random
 */

const PASSING = [429, 502, 503];
// In seconds.
const PATIENCE = 15;
const FIRST_PAUSE = 0.5;
const LONGEST_WAIT = 60;

/** @type {Clock} */
export const systemClock = {
  now: () => performance.now() / 1000,
  sleep: (seconds, signal) => new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  }),
  random: Math.random,
};

/**
 * Fetch an address and its whole body. After a failure that may pass, fetch it again for PATIENCE
 * seconds, with growing pauses. Return the last response or throw the last network error.
 * @param {string} address
 * @param {RequestInit} [options]
 * @param {Clock} [clock]
 */
export async function fetchPatiently(address, options = {}, clock = systemClock) {
  let pause = FIRST_PAUSE, deadline = Infinity;
  for (;;) {
    const outcome = await attempt(address, options);
    options.signal?.throwIfAborted();
    if (outcome instanceof Response && !PASSING.includes(outcome.status)) return outcome;
    deadline = Math.min(deadline, clock.now() + PATIENCE);
    if (clock.now() >= deadline) {
      if (outcome instanceof Response) return outcome;
      throw outcome;
    }
    const asked = secondsAskedFor(outcome);
    // The time that the server asks for does not use up the patience, or a rate limit would.
    deadline += Math.max(0, asked - pause);
    const own = Math.min(pause * (1 + clock.random() / 2), deadline - clock.now());
    await clock.sleep(Math.max(asked, own), options.signal);
    pause *= 2;
  }
}

/** @param {string} address @param {RequestInit} options @returns {Promise<unknown>} */
async function attempt(address, options) {
  try {
    const response = await fetch(address, options);
    // A connection may also break within the body.
    return new Response(await response.blob(), response);
  } catch (error) {
    return error;
  }
}

/** @param {unknown} outcome */
function secondsAskedFor(outcome) {
  const asked = outcome instanceof Response ? Number(outcome.headers.get("Retry-After")) : 0;
  return Math.min(asked || 0, LONGEST_WAIT);
}
