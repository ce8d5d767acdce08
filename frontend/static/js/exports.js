// The downloads: a table of all cells, and the labelled cells in folders for `make train CELLS=...`.

import { classesOf, groupOf, isCell } from "./collection.js";
import { isCounted } from "./kinds.js";
import { toTrainingImage } from "./pictures.js";
import { zip } from "./zip.js";

/** @import { Cell, Entry } from "./collection.js" */

/** @param {Entry[]} entries @param {boolean} onlyConfirmed */
export function saveTable(entries, onlyConfirmed) {
  // With the byte order mark, spreadsheets read UTF-8.
  save(new Blob(["\ufeff", toTable(entries, onlyConfirmed)], { type: "text/csv" }), "cells.csv");
}

/**
 * @param {Cell[]} cells
 * @param {string[]} suffixes
 */
export async function saveLabelled(cells, suffixes) {
  /** @type {[string, Blob][]} */
  const files = [];
  const groups = [["file", "group"]];
  const images = [...new Set(cells.map(({ image }) => image.id))];
  for (const cell of cells) {
    const { id, name, file } = cell.image;
    const cut = await toTrainingImage(cell);
    const short = `${images.indexOf(id) + 1}-${stem(name)}`;
    const path = `${folderOf(cell)}/${cell.index + 1}-${short}${cut ? ".png" : suffix(name, suffixes)}`;
    files.push([path, cut ?? file]);
    // Cells of one image are alike: training never splits a group.
    groups.push([path, short]);
  }
  files.push(["groups.csv", new Blob([toCsv(groups)])]);
  save(await zip(files), "labelled-cells.zip");
}

// As `make train CELLS=...` reads them: a folder for each class of the version, and for other kinds.
/** @param {Cell} cell */
function folderOf(cell) {
  const kind = cell.own ?? "OTHER";
  return kind in cell.probabilities ? kind : `OTHER/${kind.toLowerCase()}`;
}

/**
 * Return the table of all cells as CSV.
 * @param {Entry[]} entries
 * @param {boolean} onlyConfirmed Whether only cells count that the visitor labelled.
 */
export function toTable(entries, onlyConfirmed = false) {
  const classes = classesOf(entries);
  const columns = [
    "file", "cell", "left", "top", "right", "bottom", "version", "label", "verdict",
    "adapted", ...classes.map((label) => label.toLowerCase()), "your_label", "counted_as", "problem",
  ];
  return toCsv([columns, ...entries.map((entry) => {
    if (!isCell(entry)) {
      return [entry.name, ...Array(columns.length - 2).fill(""), entry.problem ?? entry.state];
    }
    if (!entry.found && !entry.own) {
      return [entry.image.name, ...Array(columns.length - 2).fill(""), "NoCellFound"];
    }
    const box = entry.box?.map((side) => side.toFixed(1)) ?? ["", "", "", ""];
    const shares = classes.map((label) => entry.probabilities[label]?.toFixed(6) ?? "");
    return [
      entry.image.name, entry.index + 1, ...box, entry.image.version, entry.label ?? "",
      entry.verdict, entry.adapted ? "yes" : "no", ...shares, entry.own ?? "",
      onlyConfirmed && !entry.own ? "" : countedAs(entry), "",
    ];
  })]);
}

/** Return the kind that a cell is counted as, or nothing. @param {Cell} cell */
function countedAs(cell) {
  const group = groupOf(cell);
  const decided = group === cell.own || group === cell.label;
  return decided && isCounted(group) ? group : "";
}

/** @param {unknown[][]} rows */
export const toCsv = (rows) => rows.map((row) => row.map(quote).join(",") + "\r\n").join("");

// A spreadsheet would run a text that begins like a formula, also in full-width characters or after
// blanks and invisible characters.
const FORMULA = /^(?=[\t\r]|[\p{C}\p{Z}]*[=+\-@\uff1d\uff0b\uff0d\uff20])/u;
const NUMBER = /^-?\d+(\.\d+)?$/;

/** @param {unknown} value */
function quote(value) {
  const text = String(value);
  if (NUMBER.test(text)) return text;
  const safe = text.replace(FORMULA, "'");
  // Other spreadsheets split at semicolons or tabs.
  return /^[\w.]*$/.test(safe) ? safe : `"${safe.replaceAll('"', '""')}"`;
}

/** @param {string} name */
const stem = (name) => name.replace(/\.[^.]*$/, "").replace(/[^\w-]+/g, "_").slice(0, 80) || "image";

/** @param {string} name @param {string[]} suffixes */
const suffix = (name, suffixes) => suffixes.find((each) => name.toLowerCase().endsWith(each)) ?? ".jpg";

/** @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
