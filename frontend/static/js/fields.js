// What a person writes on the report of a count, and the absolute counts that follow from it.

/** @import { Summary } from "./count.js" */
/**
 * @typedef {readonly [number | null, number | null]} Range The lowest and the highest, in 10^9/L.
 *
 * @typedef {object} Report It is never modified in place.
 * @property {string} sample
 * @property {string} reviewer
 * @property {number | null} leukocytes In 10^9/L.
 * @property {Readonly<Record<string, Range>>} ranges By kind.
 *
 * @typedef {object} Absolute
 * @property {string} kind
 * @property {boolean} bands Whether band neutrophils are part of these neutrophils.
 * @property {number} value In 10^9/L.
 * @property {Range} range
 * @property {"low" | "high" | ""} flag
 */

// Adults: Oxford University Hospitals, listed in Front. Pharmacol. 2020; 11:314, table 6 (PMC7082321).
/** @type {Report["ranges"]} */
const ADULTS = {
  NEUTROPHIL: [2, 7],
  LYMPHOCYTE: [1, 3],
  MONOCYTE: [0.2, 1],
  EOSINOPHIL: [0.02, 0.5],
  BASOPHIL: [0.02, 0.1],
};

/** @type {Report} */
export const BLANK = { sample: "", reviewer: "", leukocytes: null, ranges: ADULTS };

/** Return whether a value of a file is a report. @param {any} report */
export const isReport = ({ sample, reviewer, leukocytes, ranges }) =>
  [sample, reviewer].every((each) => typeof each === "string")
  && [leukocytes, ...Object.values(ranges).flat()].every(isAmount)
  && Object.values(ranges).every((range) => Array.isArray(range) && range.length === 2);

/** @param {unknown} value */
const isAmount = (value) => value === null || (Number.isFinite(value) && Number(value) >= 0);

/**
 * Return the absolute count of each kind; none without the leukocytes.
 * @param {Summary} summary
 * @param {Report} report
 * @returns {Absolute[]}
 */
export function absolutes({ rows, counted }, { leukocytes, ranges }) {
  if (leukocytes === null || !counted) return [];
  return withBands(rows).map(({ kind, count, bands }) => {
    // As it is shown, so that a value at a limit is inside.
    const value = Math.round((100 * leukocytes * count) / counted) / 100;
    const range = ranges[kind] ?? [null, null];
    return { kind, bands, value, range, flag: flagOf(value, range) };
  });
}

/**
 * Return the counts with the bands among the neutrophils, as reference ranges and LOINC have them.
 * @param {Summary["rows"]} rows
 */
export function withBands(rows) {
  const found = rows.find(({ kind }) => kind === "BAND")?.count ?? 0;
  return rows.map(({ kind, count }) => {
    const bands = kind === "NEUTROPHIL" && found > 0;
    return { kind, count: bands ? count + found : count, bands };
  });
}

/** @param {number} value @param {Range} range @returns {Absolute["flag"]} */
function flagOf(value, [low, high]) {
  if (low !== null && value < low) return "low";
  return high !== null && value > high ? "high" : "";
}

/**
 * Return an amount that a person wrote, with a decimal comma or point; null if it is none.
 * @param {string} text
 */
export function amountOf(text) {
  const value = text.trim().replace(",", ".");
  return /^\d+(\.\d+)?$/.test(value) ? Number(value) : null;
}
