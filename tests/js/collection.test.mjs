import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { Collection, groupOf } from "../../frontend/static/js/collection.js";

const { fetch } = globalThis;
globalThis.document = { getElementsByName: () => [{ value: "token" }] };
afterEach(() => { globalThis.fetch = fetch; });

const FIELD = [
  { label: "MONOCYTE", verdict: "confident", probabilities: { MONOCYTE: 0.9, NEUTROPHIL: 0.1 }, box: [50, 0, 60, 10], found: true },
  { label: "NEUTROPHIL", verdict: "uncertain", probabilities: { MONOCYTE: 0.4, NEUTROPHIL: 0.6 }, box: [10, 0, 20, 10], found: true },
];
const answer = (cells) => Response.json({ version: "2.0", cells });
const failure = (type) => Response.json({ type }, { status: 503 });

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

test("at most six images are sent at a time; cancelled ones can be retried", async () => {
  globalThis.fetch = (_, { signal }) => new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason));
  });
  const collection = new Collection();
  collection.add(files(8), "", 100);
  assert.equal(collection.images.filter((image) => image.state === "asking").length, 6);
  collection.cancel();
  assert.equal(collection.failed.length, 8);
  globalThis.fetch = async () => answer(FIELD);
  collection.retry(collection.failed);
  await done(collection);
  assert.equal(collection.failed.length, 0);
});

test("without a model the waiting images fail, too", async () => {
  let sent = 0;
  globalThis.fetch = async () => (sent++, failure("ServiceUnavailable"));
  const collection = new Collection();
  collection.add(files(20), "", 100);
  await done(collection);
  assert.deepEqual([sent, collection.failed.length], [6, 20]);
});

test("a bad image fails alone", async () => {
  let sent = 0;
  globalThis.fetch = async () => (sent++ ? answer(FIELD) : failure("CorruptImage"));
  const collection = new Collection();
  collection.add(files(20), "", 100);
  await done(collection);
  assert.deepEqual(collection.failed.map((image) => image.problem), ["CorruptImage"]);
});

test("a full queue is asked again, then reported", async (t) => {
  t.mock.method(globalThis, "setTimeout", (action) => { queueMicrotask(action); });
  let sent = 0;
  globalThis.fetch = async () => (++sent < 5 ? failure("ServiceBusy") : answer(FIELD));
  const collection = new Collection();
  collection.add(files(1), "", 100);
  await done(collection);
  assert.equal(collection.failed.length, 0);
  sent = -100;
  collection.add(files(1), "", 100);
  await done(collection);
  assert.deepEqual([sent, collection.failed[0].problem], [-95, "ServiceBusy"]);
});
