import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { Collection, groupOf } from "../../frontend/static/js/collection.js";
import { predict } from "../../frontend/static/js/service.js";
import { Clock } from "./clock.mjs";

const { fetch } = globalThis;
globalThis.document = { getElementsByName: () => [{ value: "token" }] };
afterEach(() => { globalThis.fetch = fetch; });

const FIELD = [
  { label: "MONOCYTE", verdict: "confident", probabilities: { MONOCYTE: 0.9, NEUTROPHIL: 0.1 }, box: [50, 0, 60, 10], found: true },
  { label: "NEUTROPHIL", verdict: "uncertain", probabilities: { MONOCYTE: 0.4, NEUTROPHIL: 0.6 }, box: [10, 0, 20, 10], found: true },
];
const answer = (cells) => Response.json({ version: "3.0", cells });
const found = () => answer(FIELD);
const refused = (status, type = "ServiceUnavailable") => () => Response.json({ type }, { status });
const reset = () => { throw new TypeError("connection reset"); };

/** Send images to a server that answers by the number of the request and the name of the image. */
async function run(count, respond) {
  const clock = new Clock();
  const collection = new Collection((file, version, signal) => predict(file, version, signal, clock));
  let sent = 0;
  globalThis.fetch = async (_, { body }) => respond(sent++, body.get("image").name, clock);
  collection.add(files(count), "", 100);
  const asking = () => collection.images.filter((image) => image.state === "asking").length;
  await clock.run(asking, () => !collection.open.length);
  return { collection, clock };
}

/** Resolve when a condition holds after a change. */
const until = (collection, condition) => new Promise((resolve) => {
  const check = () => { if (condition()) resolve(); };
  collection.addEventListener("change", check);
  check();
});
const done = (collection) => until(collection, () => !collection.open.length);
const files = (count, size = 3) => Array.from({ length: count }, (_, i) => new File([new Uint8Array(size)], `${i}.png`));

test("an image without an answer is one entry, later its cells from left to right", async () => {
  globalThis.fetch = async () => answer(FIELD);
  const collection = new Collection();
  collection.add(files(1), "", 100);
  assert.deepEqual(collection.entries.map(groupOf), ["open"]);
  await done(collection);
  assert.deepEqual(collection.entries.map((cell) => cell.label), ["NEUTROPHIL", "MONOCYTE"]);
  assert.deepEqual(collection.entries.map(groupOf), ["uncertain", "MONOCYTE"]);
  assert.deepEqual(collection.entries.map((cell) => cell.confidence), [0.6, 0.9]);
});

test("the visitor's label overrides the model's group, and null removes it", async () => {
  globalThis.fetch = async () => answer(FIELD);
  const collection = new Collection();
  collection.add(files(1), "", 100);
  await done(collection);
  const [cell] = collection.entries;
  collection.label([cell], () => "OTHER");
  assert.equal(groupOf(cell), "OTHER");
  assert.deepEqual(collection.labelled, [cell]);
  collection.label([cell], () => null);
  assert.equal(groupOf(cell), "uncertain");
  assert.equal(groupOf({ ...cell, label: null, verdict: "rejected" }), "OTHER");
});

test("empty and too large files are not sent", () => {
  globalThis.fetch = () => assert.fail("sent");
  const collection = new Collection();
  collection.add([...files(1, 0), ...files(1, 11)], "", 10);
  assert.deepEqual(collection.failed.map((image) => image.problem), ["EmptyImage", "ImageTooLarge"]);
});

test("at most three images are sent at a time; cancelled ones can be retried", async () => {
  globalThis.fetch = (_, { signal }) => new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason));
  });
  const collection = new Collection();
  collection.add(files(8), "", 100);
  assert.equal(collection.images.filter((image) => image.state === "asking").length, 3);
  collection.cancel();
  assert.equal(collection.failed.length, 8);
  globalThis.fetch = async () => answer(FIELD);
  collection.retry(collection.failed);
  await done(collection);
  assert.equal(collection.failed.length, 0);
});

test("one failure of each kind among 60 images fails none of them", async () => {
  const failures = [refused(429), refused(502), refused(503), reset];
  const { collection } = await run(60, (sent) => (failures[sent - 20] ?? found)());
  assert.deepEqual([collection.failed, collection.entries.length], [[], 120]);
});

test("an image that always fails is given up after 15 seconds, and fails alone", async () => {
  for (const failure of [refused(429), refused(502), refused(503), reset]) {
    const { collection, clock } = await run(60, (_, name) => (name === "3.png" ? failure : found)());
    assert.deepEqual([collection.failed.map((image) => image.name), clock.now()], [["3.png"], 15]);
  }
});

test("without a server all images fail after 15 seconds, not each after its own", async () => {
  for (const failure of [refused(503), reset]) {
    const { collection, clock } = await run(60, failure);
    assert.deepEqual([collection.failed.length, clock.now()], [60, 15]);
  }
});

test("a server that is away for less loses no image", async () => {
  const { collection } = await run(60, (_sent, _name, clock) => (clock.now() < 14 ? reset : found)());
  assert.deepEqual([collection.failed, collection.entries.length], [[], 120]);
});

test("a bad image fails alone", async () => {
  for (const [status, kind] of [[400, "CorruptImage"], [500, "WorkerDied"]]) {
    const { collection } = await run(20, (sent) => (sent ? found() : refused(status, kind)()));
    assert.deepEqual(collection.failed.map((image) => image.problem), [kind]);
  }
});
