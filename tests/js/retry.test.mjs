import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { fetchPatiently } from "../../frontend/static/js/retry.js";
import { Clock } from "./clock.mjs";

const { fetch } = globalThis;
afterEach(() => { globalThis.fetch = fetch; });

const status = (status, headers) => () => new Response("body", { status, headers });
const reset = () => { throw new TypeError("connection reset"); };
const brokenBody = () => new Response(new ReadableStream({ pull() { reset(); } }));

/** Fetch from a server that gives these answers and then repeats the last: outcome, times. */
async function ask(...answers) {
  const clock = new Clock();
  const times = [];
  globalThis.fetch = async () => {
    times.push(clock.now());
    return (answers.length > 1 ? answers.shift() : answers[0])();
  };
  let outcome;
  fetchPatiently("/", {}, clock).then((found) => { outcome = found; }, (error) => { outcome = error; });
  await clock.run(() => 1, () => outcome);
  return { outcome, times };
}

test("a failure that may pass is tried again", async () => {
  for (const failure of [status(429), status(502), status(503), reset, brokenBody]) {
    const { outcome, times } = await ask(failure, failure, status(200));
    assert.deepEqual([await outcome.text(), times], ["body", [0, 0.5, 1.5]]);
  }
});

test("any other answer is final", async () => {
  for (const code of [200, 400, 413, 500, 504]) {
    const { outcome, times } = await ask(status(code), status(200));
    assert.deepEqual([outcome.status, times], [code, [0]]);
  }
});

test("after 15 seconds the failure is returned", async () => {
  const { outcome, times } = await ask(status(503));
  assert.deepEqual([outcome.status, times], [503, [0, 0.5, 1.5, 3.5, 7.5, 15]]);
  assert.equal((await ask(reset)).outcome.message, "connection reset");
});

test("it waits as long as the server asks for, which does not use up its patience", async () => {
  const limited = status(429, { "Retry-After": "40" });
  assert.deepEqual((await ask(limited, status(200))).times, [0, 40]);
  assert.deepEqual((await ask(limited, limited, limited, status(200))).times, [0, 40, 80, 120]);
  // A page may not keep a visitor for an hour, or for ever.
  const hour = (await ask(status(429, { "Retry-After": "3600" }))).times;
  assert.equal(hour[1], 60);
  assert.ok(hour.at(-1) < 600);
  const date = status(503, { "Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT" });
  assert.deepEqual((await ask(date)).times, [0, 0.5, 1.5, 3.5, 7.5, 15]);
});

test("the pauses of several clients differ", async () => {
  const clock = new Clock();
  clock.random = () => 0.5;
  const times = [];
  globalThis.fetch = async () => (times.push(clock.now()), times.length < 3 ? reset() : status(200)());
  let done = false;
  fetchPatiently("/", {}, clock).then(() => { done = true; });
  await clock.run(() => 1, () => done);
  assert.deepEqual(times, [0, 0.625, 1.875]);
});

test("a cancelled request is not tried again", async () => {
  const cancelled = new AbortController();
  let sent = 0;
  globalThis.fetch = async () => (sent++, cancelled.abort(), reset());
  await assert.rejects(fetchPatiently("/", { signal: cancelled.signal }, new Clock()), { name: "AbortError" });
  assert.equal(sent, 1);
});

test("the system's clock stops sleeping when the request is cancelled", async () => {
  const { systemClock } = await import("../../frontend/static/js/retry.js");
  await systemClock.sleep(0);
  const cancelled = new AbortController();
  const sleeping = systemClock.sleep(3600, cancelled.signal);
  cancelled.abort();
  await assert.rejects(sleeping, { name: "AbortError" });
});
