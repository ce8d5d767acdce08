import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { Collection, groupOf } from "../../frontend/static/js/collection.js";
import { pack } from "../../frontend/static/js/embedding.js";
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

const MOST = { images: 100, bytes: 100 };

/** Send images to a server that answers by the number of the request and the name of the image. */
async function run(count, respond) {
  const clock = new Clock();
  const collection = new Collection((file, version, signal) => predict(file, version, signal, clock));
  let sent = 0;
  globalThis.fetch = async (_, { body }) => respond(sent++, body.get("image").name, clock);
  await collection.add(files(count), "", MOST);
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
const files = (count, size = 3) => Array.from({ length: count }, (_, i) => new File([new Uint8Array(size).fill(i)], `${i}.png`));

/** Return a count of files that a server has answered. */
async function counted(added) {
  globalThis.fetch = async () => answer(FIELD);
  const collection = new Collection();
  await collection.add(added, "", MOST);
  await done(collection);
  return collection;
}

test("an image without an answer is one entry, later its cells from left to right", async () => {
  globalThis.fetch = async () => answer(FIELD);
  const collection = new Collection();
  await collection.add(files(1), "", MOST);
  assert.deepEqual(collection.entries.map(groupOf), ["open"]);
  await done(collection);
  assert.deepEqual(collection.entries.map((cell) => cell.label), ["NEUTROPHIL", "MONOCYTE"]);
  assert.deepEqual(collection.entries.map(groupOf), ["uncertain", "MONOCYTE"]);
  assert.deepEqual(collection.entries.map((cell) => cell.confidence), [0.6, 0.9]);
});

test("the visitor's label overrides the model's group, and null removes it", async () => {
  const collection = await counted(files(1));
  const [cell] = collection.entries;
  collection.label([cell], () => "OTHER");
  assert.equal(groupOf(collection.entries[0]), "OTHER");
  assert.deepEqual(collection.labelled.map(({ id }) => id), [cell.id]);
  collection.label([cell], () => null);
  assert.equal(groupOf(collection.entries[0]), "uncertain");
  assert.equal(groupOf({ ...cell, label: null, verdict: "rejected" }), "rejected");
  assert.equal(groupOf({ ...cell, label: null, verdict: "rejected", found: false }), "none");
});

test("every change can be undone and redone, and answers stay", async () => {
  const collection = await counted(files(2));
  collection.label(collection.entries, () => "BLAST");
  collection.clear();
  assert.equal(collection.entries.length, 0);
  const seen = [];
  for (let steps = 0; steps < 4; steps++) {
    seen.push([collection.images.length, collection.labelled.length]);
    collection.undo();
  }
  assert.deepEqual(seen, [[0, 0], [2, 4], [2, 0], [0, 0]]);
  assert.equal(collection.canUndo, false);
  for (let steps = 0; steps < 2; steps++) collection.redo();
  assert.deepEqual([collection.images.length, collection.labelled.length], [2, 4]);
  assert.equal(collection.open.length, 0);
});

test("a new change forgets what was undone", async () => {
  const collection = await counted(files(1));
  const [first, second] = collection.entries;
  collection.label([first], () => "BLAST");
  collection.undo();
  collection.label([second], () => "BAND");
  assert.equal(collection.canRedo, false);
  assert.deepEqual(collection.labelled.map(({ id, own }) => [id, own]), [[second.id, "BAND"]]);
});

test("the same file is added once, whatever its name", async () => {
  globalThis.fetch = async () => answer(FIELD);
  const collection = new Collection();
  const [file] = files(1);
  const copy = new File([await file.arrayBuffer()], "copy.png");
  const { first, repeated } = await collection.add([file, copy], "", MOST);
  assert.equal(repeated, 1);
  assert.deepEqual(collection.images.map(({ id, name }) => [id, name]), [[first, "0.png"]]);
  assert.deepEqual(await collection.add([copy], "", MOST), { first: null, repeated: 1, refused: 0 });
});

test("all images of a count are asked of the version that answered the first", async () => {
  const asked = [];
  // The default changes while three images are asked about.
  const versions = ["3.0", "4.0", "4.0"];
  globalThis.fetch = async (_, { body }) => {
    const version = body.get("version");
    asked.push(version);
    return Response.json({ version: version ?? versions.shift(), cells: FIELD });
  };
  const collection = new Collection();
  await collection.add(files(5), "", MOST);
  await done(collection);
  assert.deepEqual(new Set(collection.images.map(({ version }) => version)), new Set(["3.0"]));
  assert.deepEqual(asked, [null, null, null, "3.0", "3.0", "3.0", "3.0"]);
});

test("a version that was chosen for a count stays with its images", async () => {
  globalThis.fetch = async (_, { body }) => Response.json({ version: body.get("version") ?? "3.0", cells: FIELD });
  const collection = new Collection();
  const [one, two] = files(2);
  await collection.add([one], "", MOST);
  await done(collection);
  collection.undo();
  await collection.add([two], "1.0", MOST);
  await collection.add([one], "3.0", MOST);
  await done(collection);
  assert.deepEqual(collection.images.map(({ version }) => version), ["1.0", "1.0"]);
});

test("a count that is opened replaces another, which can be had back", async () => {
  const collection = await counted(files(2)), other = await counted(files(2));
  other.label(other.entries, () => "BLAST");
  collection.restore(other.count, other.uploads);
  assert.equal(collection.labelled.length, 4);
  collection.undo();
  assert.deepEqual([collection.images.length, collection.labelled.length], [2, 0]);
});

test("a label that changes nothing is no step", async () => {
  const collection = await counted(files(1));
  collection.label(collection.entries, () => "BLAST");
  collection.undo();
  collection.label(collection.entries, () => null);
  assert.equal(collection.canRedo, true);
});

test("a head answers until it is switched off or undone, and a new count has none", async () => {
  const cells = FIELD.map((cell) => ({ ...cell, embedding: pack(Float32Array.of(1)) }));
  globalThis.fetch = async () => answer(cells);
  const collection = new Collection();
  await collection.add(files(1), "", MOST);
  await done(collection);
  const labels = () => collection.entries.map(({ label, adapted }) => [label, Boolean(adapted)]);
  const own = [["NEUTROPHIL", false], ["MONOCYTE", false]], adapted = [["MONOCYTE", true], ["MONOCYTE", true]];
  collection.adaptTo({
    on: true, classes: ["MONOCYTE", "NEUTROPHIL"], weights: pack(Float32Array.of(9, 0, -9, 0)), weight: 1,
    confident: 0.9, labels: {}, check: null,
  }, 0);
  assert.deepEqual(labels(), adapted);
  collection.useHead(false);
  assert.deepEqual(labels(), own);
  collection.undo();
  assert.deepEqual(labels(), adapted);
  // The visitor's label overrides it; the model's answer is shown beside.
  collection.label([collection.entries[0]], () => "BAND");
  assert.deepEqual(labels(), [own[0], adapted[1]]);
  collection.undo();
  collection.undo();
  assert.deepEqual([labels(), collection.head], [own, null]);
  collection.redo();
  collection.clear();
  await collection.add(files(2), "", MOST);
  assert.equal(collection.head, null);
  await done(collection);
});

test("more images than a count may have are not added, and those that it has do not count", async () => {
  globalThis.fetch = async () => answer(FIELD);
  const collection = new Collection();
  const most = { ...MOST, images: 3 };
  await collection.add(files(2), "", most);
  const { repeated, refused } = await collection.add(files(5), "", most);
  assert.deepEqual([collection.images.length, repeated, refused], [3, 2, 2]);
  await done(collection);
});

test("empty and too large files are not sent", async () => {
  globalThis.fetch = () => assert.fail("sent");
  const collection = new Collection();
  await collection.add([...files(1, 0), ...files(1, 11)], "", { ...MOST, bytes: 10 });
  assert.deepEqual(collection.failed.map((image) => image.problem), ["EmptyImage", "ImageTooLarge"]);
});

test("at most three images are sent at a time; cancelled ones can be retried", async () => {
  globalThis.fetch = (_, { signal }) => new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason));
  });
  const collection = new Collection();
  await collection.add(files(8), "", MOST);
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

test("the report is part of the count, and can be undone", async () => {
  const collection = await counted(files(1));
  const report = { ...collection.count.report, sample: "S-1" };
  collection.describe(report);
  collection.describe({ ...report });
  assert.equal(collection.count.report.sample, "S-1");
  // The same report is no step.
  collection.undo();
  assert.equal(collection.count.report.sample, "");
  collection.redo();
  assert.equal(collection.count.report.sample, "S-1");
});

test("a new count keeps the reference ranges of the laboratory only", async () => {
  const collection = await counted(files(1));
  const ranges = { BLAST: [0, 1] };
  collection.describe({ sample: "S-1", reviewer: "Ana", leukocytes: 7, ranges });
  collection.clear();
  const blank = { sample: "", reviewer: "", leukocytes: null, ranges };
  assert.deepEqual(collection.count.report, blank);
  await collection.add(files(1), "", MOST);
  assert.deepEqual(collection.count.report, blank);
});

test("a count of an older page has a blank report", () => {
  const collection = new Collection();
  collection.restore({ id: "1", wanted: "", images: [], labels: {} }, []);
  assert.equal(collection.count.report.leukocytes, null);
});
