// What a person takes along: a table of all cells, and the labelled ones as folders that
// `make train CELLS=...` reads.

import { CLASSES } from "./collection.js";
import { toTrainingImage } from "./pictures.js";
import { zip } from "./zip.js";

const COLUMNS = [
  "file", "cell", "left", "top", "right", "bottom", "version", "label", "verdict",
  ...CLASSES.map((label) => label.toLowerCase()), "your_label", "problem",
];

export function saveTable(entries) {
  const rows = [COLUMNS, ...entries.map(toRow)];
  // With the mark, spreadsheets read UTF-8.
  save(new Blob(["\ufeff", toCsv(rows)], { type: "text/csv" }), "cells.csv");
}

export async function saveLabelled(cells) {
  const files = [], groups = [["file", "group"]];
  for (const cell of cells) {
    const image = await toTrainingImage(cell);
    const path = `${cell.own}/${cell.id}-${stem(cell.image.name)}.${extension(image)}`;
    files.push([path, new Uint8Array(await image.arrayBuffer())]);
    // Cells of one image are much alike: training never splits a group.
    groups.push([path, cell.image.id + "-" + stem(cell.image.name)]);
  }
  files.push(["groups.csv", new TextEncoder().encode(toCsv(groups))]);
  save(new Blob([zip(files)], { type: "application/zip" }), "labelled-cells.zip");
}

function toRow(entry) {
  const image = entry.image ?? entry;
  if (entry.cells) {
    const blank = COLUMNS.length - 2;
    return [image.name, ...Array(blank).fill(""), entry.problem ?? entry.state];
  }
  const box = entry.box?.map((side) => side.toFixed(1)) ?? ["", "", "", ""];
  const shares = CLASSES.map((label) => entry.probabilities[label].toFixed(6));
  return [
    image.name, entry.index + 1, ...box, image.version, entry.label ?? "", entry.verdict,
    ...shares, entry.own ?? "", "",
  ];
}

const toCsv = (rows) => rows.map((row) => row.map(quote).join(",") + "\r\n").join("");

function quote(value) {
  // A spreadsheet would take such a file name for a formula.
  const text = String(value).replace(/^(?=[=+\-@\t\r])/, "'");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const stem = (name) => name.replace(/\.[^.]*$/, "").replace(/[^\w-]+/g, "_").slice(0, 80) || "image";

function extension(image) {
  if (image.type === "image/png") return "png";
  return image.name?.match(/\.(jpe?g|bmp|tiff?|webp)$/i)?.[1].toLowerCase() ?? "jpg";
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
