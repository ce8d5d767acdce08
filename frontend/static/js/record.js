// A count as one record, which the report and all exports are written from.

import { classesOf, entriesOf, isCell } from "./collection.js";
import { summarize } from "./count.js";
import { absolutes } from "./fields.js";
import { isCounted, kindsOf } from "./kinds.js";

/** @import { Cell, Image } from "./collection.js" */
/** @import { Summary } from "./count.js" */
/** @import { Absolute, Report } from "./fields.js" */
/**
 * @typedef {object} RecordedCell
 * @property {string} id
 * @property {number} number In its image, from 1.
 * @property {number[] | null} box Left, top, right, bottom in pixels of the image.
 * @property {string | null} label The model's.
 * @property {Cell["verdict"]} verdict
 * @property {Record<string, number>} probabilities
 * @property {number} confidence
 * @property {boolean} adapted Whether a head of this count answered.
 * @property {string | null} own The visitor's label.
 * @property {string | null} final The visitor's label, or else the model's if its confidence is high.
 * @property {string | null} counted The kind that the cell is counted as.
 *
 * @typedef {object} RecordedImage
 * @property {string} id
 * @property {string} name
 * @property {string} version
 * @property {number[] | null} size Width and height, if they are known.
 * @property {string | null} problem Why it has no cells.
 * @property {RecordedCell[]} cells
 *
 * @typedef {object} CountRecord
 * @property {Report} report
 * @property {Date} date
 * @property {string} version
 * @property {string} hash The SHA-256 of the version's network; "" if the page does not know it.
 * @property {boolean} adapted Whether a head of this count answered any cell.
 * @property {number} target
 * @property {Summary} summary
 * @property {Absolute[]} absolutes
 * @property {string[]} classes Of the version.
 * @property {string[]} kinds All that a cell can be labelled as.
 * @property {RecordedImage[]} images
 */

const NO_CELL = "NoCellFound";

/**
 * @param {object} facts
 * @param {Report} facts.report
 * @param {Image[]} facts.images
 * @param {Map<string, number[]>} [facts.sizes] By the id of the image.
 * @param {boolean} facts.onlyConfirmed Whether only cells count that the visitor labelled.
 * @param {number} facts.target
 * @param {Record<string, string>} facts.hashes By version.
 * @param {Date} facts.date
 * @returns {CountRecord}
 */
export function toRecord({ report, images, sizes, onlyConfirmed, target, hashes, date }) {
  const entries = entriesOf(images);
  const classes = classesOf(entries);
  const version = entries.find(isCell)?.image.version ?? "";
  const summary = summarize(entries, onlyConfirmed);
  return {
    report, date, version, target, summary, classes,
    hash: hashes[version] ?? "",
    adapted: entries.some((entry) => isCell(entry) && entry.adapted),
    absolutes: absolutes(summary, report),
    kinds: kindsOf(classes),
    images: images.map(({ id, name, version, size, cells, problem, state }) => {
      const found = cells.filter((cell) => cell.found || cell.own);
      const reason = cells.length ? NO_CELL : (problem ?? state);
      return {
        id, name, version,
        size: size ?? sizes?.get(id) ?? null,
        problem: found.length ? null : reason,
        cells: found.map((cell) => toCell(cell, onlyConfirmed)),
      };
    }),
  };
}

/** @param {Cell} cell @param {boolean} onlyConfirmed @returns {RecordedCell} */
function toCell(cell, onlyConfirmed) {
  const { id, index, box, label, verdict, probabilities, confidence, own } = cell;
  const final = own ?? (verdict === "confident" ? label : null);
  const counts = final && isCounted(final) && (own || !onlyConfirmed);
  return {
    id, number: index + 1, box, label, verdict, probabilities, confidence, own, final,
    adapted: Boolean(cell.adapted),
    counted: counts ? final : null,
  };
}

/** Return the cells without a decision, and their images. @param {CountRecord} record */
export const doubtful = (record) => record.images.flatMap((image) =>
  image.cells.filter((cell) => !cell.final).map((cell) => ({ image, cell })));

// What formats with one class for each box call a cell without a decision: left out, it would look
// like background.
export const UNDECIDED = "UNDECIDED";

/**
 * Return the images that were answered and whose size is known, each with its cells that have a box.
 * @param {CountRecord} record
 */
export const boxed = (record) => record.images.flatMap(({ size, cells, ...image }) => {
  // An image without an answer would look like one without cells.
  if (!size || ![null, NO_CELL].includes(image.problem)) return [];
  return [{ ...image, size, cells: cells.flatMap(({ box, ...cell }) => (box ? [{ ...cell, box }] : [])) }];
});

// In an order that depends on the version only, but for labels that it does not know.
/** Return the classes of such formats. @param {CountRecord} record */
export const boxClasses = ({ kinds, images }) => [...new Set([
  ...kinds, UNDECIDED, ...images.flatMap(({ cells }) => cells.flatMap(({ final }) => final ?? [])),
])];
