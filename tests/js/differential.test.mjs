import assert from "node:assert/strict";
import { test } from "node:test";

import { countGroups, wilson } from "../../frontend/static/js/differential.js";

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

test("entries are counted by group", () => {
  const image = {};
  const entries = [
    { image, label: "MONOCYTE", verdict: "confident" },
    { image, label: "MONOCYTE", verdict: "uncertain" },
    { image, label: "NEUTROPHIL", verdict: "confident", own: "MONOCYTE" },
    { cells: [] },
  ];
  assert.deepEqual(countGroups(entries), { MONOCYTE: 2, uncertain: 1, open: 1 });
});
