import assert from "node:assert/strict";
import { test } from "node:test";

import { countGroups, isPartial, summarize, wilson } from "../../frontend/static/js/count.js";

const close = (found, expected) => found.forEach((value, index) =>
  assert.ok(Math.abs(value - expected[index]) < 5e-4, `${found} is not ${expected}`));

test("the bounds of the interval solve |p - share| = z sqrt(p (1 - p) / total)", () => {
  for (const [count, total] of [[3, 9], [1, 2], [40, 100]]) {
    for (const bound of wilson(count, total)) {
      close([Math.abs(bound - count / total)], [1.959964 * Math.sqrt((bound * (1 - bound)) / total)]);
    }
  }
});

test("the interval stays between 0 and 1", () => {
  close(wilson(0, 10), [0, 0.2775]);
  close(wilson(10, 10), [0.7225, 1]);
  assert.deepEqual(wilson(0, 0), [0, 1]);
});

const image = {};
const probabilities = { NEUTROPHIL: 0.6, MONOCYTE: 0.4 };
const cell = (label, verdict = "confident", own = null, found = true) =>
  ({ image, label, verdict, own, found, probabilities });

test("entries are counted by group", () => {
  const entries = [
    cell("MONOCYTE"), cell("MONOCYTE", "uncertain"), cell("NEUTROPHIL", "confident", "MONOCYTE"),
    cell(null, "rejected"), cell(null, "rejected", null, false), { cells: [] },
  ];
  assert.deepEqual(countGroups(entries), { MONOCYTE: 2, uncertain: 1, rejected: 1, none: 1, open: 1 });
});

test("the count has the classes of the version, and the leucocytes that the visitor labelled", () => {
  const entries = [
    cell("NEUTROPHIL"), cell("NEUTROPHIL", "uncertain", "BAND"), cell("MONOCYTE", "uncertain"),
    cell(null, "rejected"), cell(null, "rejected", "ERYTHROBLAST"),
    cell("MONOCYTE", "confident", "ARTEFACT"), cell(null, "rejected", null, false), { cells: [] },
  ];
  const { rows, counted, confirmed, found } = summarize(entries);
  assert.deepEqual(rows, [
    { kind: "NEUTROPHIL", count: 1 }, { kind: "MONOCYTE", count: 0 }, { kind: "BAND", count: 1 },
  ]);
  assert.deepEqual({ counted, confirmed, found }, { counted: 2, confirmed: 1, found: 4 });
});

test("a count of confirmed cells leaves out what only the model says", () => {
  const entries = [cell("NEUTROPHIL"), cell("NEUTROPHIL", "confident", "NEUTROPHIL")];
  const { rows, counted, found } = summarize(entries, true);
  assert.deepEqual(rows[0], { kind: "NEUTROPHIL", count: 1 });
  assert.deepEqual({ counted, found }, { counted: 1, found: 2 });
});

test("a count of few of ten cells or more is partial", () => {
  const partial = (sure, unsure) => isPartial(summarize([
    ...Array(sure).fill(cell("NEUTROPHIL")), ...Array(unsure).fill(cell(null, "rejected")),
  ]));
  assert.deepEqual([partial(6, 4), partial(7, 3), partial(5, 4), partial(0, 9)], [true, false, false, false]);
});
