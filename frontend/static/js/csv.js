// The table of all cells as CSV, in the format that spreadsheets expect in a language.

/** @import { CountRecord } from "./record.js" */
/** @typedef {{ separator: string, decimal: string }} Style */

/** @type {Style} */
const ENGLISH = { separator: ",", decimal: "." }, PORTUGUESE = { separator: ";", decimal: "," };

/**
 * @param {CountRecord} record
 * @param {string} language Of the page.
 */
export function toTable({ classes, images }, language) {
  const style = language.startsWith("pt") ? PORTUGUESE : ENGLISH;
  /** @param {number} value @param {number} digits */
  const number = (value, digits) => value.toFixed(digits).replace(".", style.decimal);
  const columns = [
    "file", "cell", "left", "top", "right", "bottom", "version", "label", "verdict", "adapted",
    ...classes.map((label) => label.toLowerCase()), "your_label", "final_class", "counted_as", "problem",
  ];
  return toCsv([columns, ...images.flatMap(({ name, version, problem, cells }) => {
    if (problem) return [[name, ...Array(columns.length - 2).fill(""), problem]];
    return cells.map((cell) => [
      name, cell.number, ...(cell.box?.map((side) => number(side, 1)) ?? ["", "", "", ""]),
      version, cell.label ?? "", cell.verdict, cell.adapted ? "yes" : "no",
      ...classes.map((label) => (label in cell.probabilities ? number(cell.probabilities[label], 6) : "")),
      cell.own ?? "", cell.final ?? "", cell.counted ?? "", "",
    ]);
  })], style);
}

/** @param {unknown[][]} rows @param {Style} [style] */
export const toCsv = (rows, style = ENGLISH) =>
  rows.map((row) => row.map((value) => quote(value, style)).join(style.separator) + "\r\n").join("");

// A spreadsheet would run a text that begins like a formula, also in full-width characters or after
// blanks and invisible characters.
const FORMULA = /^(?=[\t\r]|[\p{C}\p{Z}]*[=+\-@\uff1d\uff0b\uff0d\uff20])/u;

/** @param {unknown} value @param {Style} style */
function quote(value, { decimal }) {
  const text = String(value);
  if (/^-?\d+(\.\d+)?$/.test(text.replace(decimal, "."))) return text;
  const safe = text.replace(FORMULA, "'");
  // Other spreadsheets split at semicolons or tabs.
  return /^[\w.]*$/.test(safe) ? safe : `"${safe.replaceAll('"', '""')}"`;
}
