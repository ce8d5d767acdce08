// A count for the tests of its exports: two images, of which one has cells.

import { toRecord } from "../../frontend/static/js/record.js";
import { BLANK } from "../../frontend/static/js/fields.js";

const first = { id: "a", name: "a.png", version: "3.0", state: "done", problem: null, size: null };
const probabilities = { NEUTROPHIL: 0.75, MONOCYTE: 0.25 };

const cell = (index, label, verdict, own, box = [10, 20, 30, 60]) => ({
  id: `a-${index}`, image: first, of: 5, index, label, verdict, own, box, probabilities, found: true, confidence: 0.75,
});
export const CELLS = [
  cell(0, "NEUTROPHIL", "confident", null),
  cell(1, "NEUTROPHIL", "confident", "BAND"),
  cell(2, "MONOCYTE", "uncertain", null),
  cell(3, null, "rejected", "SMUDGE"),
  { ...cell(4, "MONOCYTE", "confident", null, null), adapted: true },
];
export const IMAGES = [
  { ...first, cells: CELLS },
  { ...first, id: "b", name: "b.png", state: "failed", problem: "CorruptImage", version: "", cells: [] },
];

/** Return the record of the count, or of other images. */
export const recorded = (facts = {}) => toRecord({
  report: { ...BLANK, sample: "S-1", reviewer: "Ana", leukocytes: 6 },
  images: IMAGES,
  sizes: new Map([["a", [100, 200]], ["b", [100, 200]]]),
  onlyConfirmed: false,
  target: 100,
  hashes: { "3.0": "1ebc" },
  date: new Date("2026-01-02T03:04:05Z"),
  ...facts,
});
