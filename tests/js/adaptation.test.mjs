import assert from "node:assert/strict";
import { test } from "node:test";

import { adapt, isCurrent, isHead, lessonsOf, teach } from "../../frontend/static/js/adaptation.js";
import { isPacked, pack, unpack } from "../../frontend/static/js/embedding.js";
import { minimize } from "../../frontend/static/js/lbfgs.js";

const CLASSES = ["EOSINOPHIL", "MONOCYTE", "NEUTROPHIL"];
const RECIPE = { C: 0.2, weight: 0.25, confident: 0.6 };

/** A cell of an image of its own. The network takes all for neutrophils; the embedding knows better. */
const cell = (id, own, place, verdict = "confident") => ({
  id, own, image: { id: `image ${id}` }, found: true, box: null, label: verdict === "rejected" ? null : "NEUTROPHIL",
  verdict, probabilities: { EOSINOPHIL: 0.1, MONOCYTE: 0.1, NEUTROPHIL: 0.8 },
  embedding: pack(Float32Array.from(CLASSES, (_, at) => Number(at === place))),
});
const several = (own, count, place = CLASSES.indexOf(own)) =>
  Array.from({ length: count }, (_, at) => cell(`${own} ${at}`, own, place));
const lessons = (cells) => lessonsOf(cells, CLASSES);

test("two classes with five labelled cells are enough", () => {
  const few = lessons([...several("EOSINOPHIL", 5), ...several("NEUTROPHIL", 4), ...several("BLAST", 9, 1)]);
  assert.deepEqual([...few.counts], [["EOSINOPHIL", 5], ["MONOCYTE", 0], ["NEUTROPHIL", 4]]);
  assert.deepEqual([few.isEnough, few.known, few.labelled.length], [false, ["EOSINOPHIL"], 9]);
  const { isEnough, known } = lessons([...several("EOSINOPHIL", 5), ...several("NEUTROPHIL", 5)]);
  assert.deepEqual([isEnough, known], [true, ["EOSINOPHIL", "NEUTROPHIL"]]);
  // An answer of a version without embeddings, or no answer at all.
  assert.equal(lessons([{ ...several("EOSINOPHIL", 1)[0], embedding: undefined }]).labelled.length, 0);
});

const taught = lessons([...several("EOSINOPHIL", 5), ...several("NEUTROPHIL", 5), ...several("MONOCYTE", 2)]);
const head = teach(taught, RECIPE);

test("a head answers by the labels, and is checked on images that it did not learn from", () => {
  const answer = adapt(cell("new", null, 0), head);
  assert.deepEqual([answer.label, answer.verdict, answer.adapted], ["EOSINOPHIL", "confident", true]);
  assert.equal(adapt(cell("new", null, 2), head).label, "NEUTROPHIL");
  // The two monocytes are never right.
  assert.deepEqual(head.check, { cells: 12, adapted: 10, model: 5 });
  const together = taught.labelled.map((each) => ({ ...each, image: { id: "one" } }));
  assert.equal(teach(lessons(together), RECIPE).check, null);
});

test("a class without labels enough keeps the network's probability", () => {
  const { probabilities } = adapt(cell("new", null, 0), head);
  assert.deepEqual(Object.keys(probabilities), CLASSES);
  assert.equal(probabilities.MONOCYTE, 0.1);
  const sum = Object.values(probabilities).reduce((a, b) => a + b);
  assert.ok(Math.abs(sum - 1) < 1e-12);
  const sure = {
    ...cell("new", null, 0), label: "MONOCYTE", probabilities: { EOSINOPHIL: 0.2, MONOCYTE: 0.7, NEUTROPHIL: 0.1 },
  };
  assert.equal(adapt(sure, head), sure);
});

test("below the version's threshold an adapted answer is uncertain", () => {
  const unsure = adapt(cell("new", null, 0), { ...head, confident: 0.95 });
  assert.equal(unsure.verdict, "uncertain");
});

test("what the network rejects, or has no embedding of, is not answered anew", () => {
  const rejected = cell("new", null, 0, "rejected"), old = { ...cell("old", null, 0), embedding: undefined };
  assert.deepEqual([adapt(rejected, head), adapt(old, head)], [rejected, old]);
});

test("a head is out of date when a label changes, and current again when that is undone", () => {
  const more = lessons([...taught.labelled, ...several("MONOCYTE", 1).map((each) => ({ ...each, id: "more" }))]);
  const other = lessons(taught.labelled.map((each, at) => (at ? each : { ...each, own: "MONOCYTE" })));
  assert.deepEqual([taught, more, other].map((each) => isCurrent(head, each)), [true, false, false]);
});

test("the same labels give the same head", () => {
  assert.deepEqual(teach(taught, RECIPE), head);
});

test("cells that are all alike can be taught, too", () => {
  const alike = teach(lessons([...several("EOSINOPHIL", 5, 0), ...several("NEUTROPHIL", 5, 0)]), RECIPE);
  assert.ok(isHead(alike));
});

test("a saved head is checked", () => {
  assert.ok(isHead(JSON.parse(JSON.stringify(head))));
  for (const wrong of [{ weights: "?" }, { on: 1 }, { classes: [1] }, { labels: { a: 1 } }, { weight: null }, { check: {} }]) {
    assert.equal(isHead({ ...head, ...wrong }), false);
  }
});

test("numbers are packed as 32-bit floats", () => {
  const numbers = Float32Array.of(0, -1.5, 3e-9, 1e9);
  assert.deepEqual(unpack(pack(numbers)), numbers);
  // By Python: base64.b64encode(struct.pack("<2f", 1, -2)).
  assert.equal(pack(Float32Array.of(1, -2)), "AACAPwAAAMA=");
  assert.deepEqual(["AACAPw==", "AACA", "AADAfw==", "AAC?Pw==", null].map(isPacked), [true, false, false, false, false]);
});

test("L-BFGS finds the minimum of a long and narrow valley", () => {
  const valley = (at, gradient) => {
    gradient.forEach((_, i) => { gradient[i] = 10 ** i * (at[i] - i); });
    return at.reduce((sum, each, i) => sum + 10 ** i * (each - i) ** 2 / 2, 0);
  };
  const found = minimize(valley, new Float64Array(5).fill(100), 1e-9);
  found.forEach((each, i) => assert.ok(Math.abs(each - i) < 1e-8, `${found}`));
});
