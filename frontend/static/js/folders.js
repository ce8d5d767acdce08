// The labelled cells in folders, as `make train CELLS=...` reads them.

import { toCsv } from "./csv.js";
import { toTrainingImage } from "./pictures.js";

/** @import { Cell } from "./collection.js" */

/**
 * Return the files by their paths.
 * @param {Cell[]} cells
 * @param {string[]} suffixes Of images.
 */
export async function toFolders(cells, suffixes) {
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
  return files;
}

// A folder for each class of the version, and for other kinds.
/** @param {Cell} cell */
export function folderOf(cell) {
  const kind = cell.own ?? "OTHER";
  // An opened count may name a label like a path.
  const safe = kind.replace(/[^\w-]+/g, "_");
  return Object.hasOwn(cell.probabilities, kind) ? safe : `OTHER/${safe.toLowerCase()}`;
}

/** @param {string} name */
const stem = (name) => name.replace(/\.[^.]*$/, "").replace(/[^\w-]+/g, "_").slice(0, 80) || "image";

/** @param {string} name @param {string[]} suffixes */
const suffix = (name, suffixes) => suffixes.find((each) => name.toLowerCase().endsWith(each)) ?? ".jpg";
