// The differential count as figures.

import { classesOf, groupOf, isCell } from "./collection.js";
import { isCounted, kindsOf } from "./kinds.js";

/** @import { Entry } from "./collection.js" */
/**
 * @typedef {object} Summary
 * @property {{ kind: string, count: number }[]} rows The kinds that are counted: all classes of the
 *   version, and others that the visitor found.
 * @property {number} counted The total of these.
 * @property {number} confirmed Of the counted cells, those that the visitor labelled.
 * @property {number} found The cells of these kinds, and those without a decision.
 * @property {Record<string, number>} groups All entries by group.
 */

const Z = 1.959964;
// From this many cells on, and if less than this share of them is counted, the count does not
// describe the sample.
const FROM_CELLS = 10, LEAST_COVERAGE = 0.7;

/**
 * Count cells by kind.
 * @param {Entry[]} entries
 * @param {boolean} onlyConfirmed Whether only cells count that the visitor labelled.
 * @returns {Summary}
 */
export function summarize(entries, onlyConfirmed = false) {
  const all = countGroups(entries);
  const labelled = countGroups(entries.filter((entry) => isCell(entry) && entry.own));
  const groups = onlyConfirmed ? labelled : all;
  const classes = classesOf(entries);
  const kinds = kindsOf(classes).filter((kind) => isCounted(kind) && (classes.includes(kind) || all[kind]));
  const rows = kinds.map((kind) => ({ kind, count: groups[kind] ?? 0 }));
  const total = (/** @type {Record<string, number>} */ counts) =>
    rows.reduce((sum, { kind }) => sum + (counts[kind] ?? 0), 0);
  return {
    rows,
    counted: total(groups),
    confirmed: total(labelled),
    found: total(all) + (all.uncertain ?? 0) + (all.rejected ?? 0),
    groups: all,
  };
}

/** Return whether a count leaves out so many cells that it does not describe the sample. */
export const isPartial = (/** @type {Summary} */ { counted, found }) =>
  found >= FROM_CELLS && counted < LEAST_COVERAGE * found;

/**
 * Return the 95 % confidence interval of a share (Wilson 1927), from 0 to 1.
 * @param {number} count
 * @param {number} total
 */
export function wilson(count, total) {
  if (!total) return [0, 1];
  const share = count / total;
  const middle = share + Z ** 2 / (2 * total);
  const half = Z * Math.sqrt((share * (1 - share)) / total + Z ** 2 / (4 * total ** 2));
  const scale = 1 + Z ** 2 / total;
  return [Math.max(0, (middle - half) / scale), Math.min(1, (middle + half) / scale)];
}

/** @param {Entry[]} entries */
export function countGroups(entries) {
  /** @type {Record<string, number>} */
  const counts = {};
  for (const entry of entries) counts[groupOf(entry)] = (counts[groupOf(entry)] ?? 0) + 1;
  return counts;
}
