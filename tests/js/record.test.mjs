import assert from "node:assert/strict";
import { test } from "node:test";

import { absolutes, amountOf, isReport, BLANK } from "../../frontend/static/js/fields.js";
import { doubtful } from "../../frontend/static/js/record.js";
import { CELLS, IMAGES, recorded } from "./counted.mjs";

test("each cell has its final class, and the class that it counts as", () => {
  const [{ cells }, failed] = recorded().images;
  assert.deepEqual(cells.map(({ final, counted }) => [final, counted]), [
    ["NEUTROPHIL", "NEUTROPHIL"], ["BAND", "BAND"], [null, null], ["SMUDGE", null], ["MONOCYTE", "MONOCYTE"],
  ]);
  assert.deepEqual([failed.problem, failed.cells], ["CorruptImage", []]);
});

test("a count of confirmed cells keeps the final classes", () => {
  const [{ cells }] = recorded({ onlyConfirmed: true }).images;
  assert.deepEqual(cells.map(({ counted }) => counted), [null, "BAND", null, null, null]);
  assert.equal(cells[0].final, "NEUTROPHIL");
});

test("the record has what the report shows", () => {
  const record = recorded();
  assert.deepEqual([record.version, record.hash, record.classes], ["3.0", "1ebc", ["NEUTROPHIL", "MONOCYTE"]]);
  assert.deepEqual([record.summary.counted, record.summary.found, record.summary.confirmed], [3, 4, 1]);
  assert.deepEqual(doubtful(record).map(({ image, cell }) => [image.name, cell.number]), [["a.png", 3]]);
  assert.equal(recorded({ hashes: {} }).hash, "");
  assert.deepEqual(record.images[0].cells.map(({ adapted }) => adapted), [false, false, false, false, true]);
  assert.ok(record.adapted);
  assert.ok(!recorded({ images: [{ ...IMAGES[0], cells: CELLS.slice(0, 4) }] }).adapted);
});

test("an image without a cell has no cells, until the visitor labels it", () => {
  const nothing = { ...CELLS[3], own: null, found: false };
  const images = (cell) => [{ ...IMAGES[0], cells: [cell] }];
  const [image] = recorded({ images: images(nothing) }).images;
  assert.deepEqual([image.problem, image.cells], ["NoCellFound", []]);
  const [labelled] = recorded({ images: images({ ...nothing, own: "BLAST" }) }).images;
  assert.deepEqual([labelled.problem, labelled.cells[0].counted], [null, "BLAST"]);
});

test("absolute counts are shares of the leukocytes; neutrophils include their bands", () => {
  const shown = recorded().absolutes.map(({ kind, bands, value, flag }) => [kind, bands, value, flag]);
  assert.deepEqual(shown, [["NEUTROPHIL", true, 4, ""], ["MONOCYTE", false, 2, "high"], ["BAND", false, 2, ""]]);
  const { summary, report } = recorded();
  assert.deepEqual(absolutes(summary, { ...report, leukocytes: null }), []);
  assert.deepEqual(absolutes({ ...summary, counted: 0 }, report), []);
  const range = (low, high) => absolutes(summary, { ...report, ranges: { NEUTROPHIL: [low, high] } })[0].flag;
  assert.deepEqual([range(4, 4), range(4.01, null), range(null, 3.99), range(null, null)], ["", "low", "high", ""]);
});

test("an amount has a decimal comma or point", () => {
  assert.deepEqual([" 7,2 ", "7.2", "7", "", "a", "-1", "1e3", "1.000,5"].map(amountOf), [7.2, 7.2, 7, null, null, null, null, null]);
});

test("a report of a file is checked", () => {
  assert.ok(isReport(BLANK));
  for (const wrong of [{ sample: 1 }, { leukocytes: "7" }, { leukocytes: -1 }, { ranges: { BLAST: [1] } }, { ranges: { BLAST: ["a", 2] } }]) {
    assert.ok(!isReport({ ...BLANK, ...wrong }), JSON.stringify(wrong));
  }
});
