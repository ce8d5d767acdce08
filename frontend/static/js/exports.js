// The downloads of a count, each written from its record.

import { toCoco } from "./coco.js";
import { toTable } from "./csv.js";
import { toFhir } from "./fhir.js";
import { toFolders } from "./folders.js";
import { toLabelStudio } from "./labelstudio.js";
import { sizeOf } from "./pictures.js";
import { boxed } from "./record.js";
import { toYolo } from "./yolo.js";
import { zip } from "./zip.js";

/** @import { Collection } from "./collection.js" */
/** @import { Upload } from "./queue.js" */
/** @import { CountRecord } from "./record.js" */
/** @import { Texts } from "./texts.js" */

/** @typedef {(record: CountRecord, texts: Texts, percent: (share: number) => string) => Blob | Promise<Blob>} Writer */

/** @param {unknown} content */
const json = (content) => new Blob([JSON.stringify(content, null, 1)], { type: "application/json" });

/** @type {Record<string, [string, Writer]>} By the value of the choice: the file's name, its writer. */
const FORMATS = {
  // With the byte order mark, spreadsheets read UTF-8.
  csv: ["cells.csv", (record) => new Blob(["\ufeff", toTable(record, document.documentElement.lang)], { type: "text/csv" })],
  fhir: ["cells.fhir.json", (record, texts, percent) => json(toFhir(record, texts, percent, newId))],
};

/** @type {Record<string, [string, Writer]>} Those that need boxes, and the sizes of the images. */
const BOXES = {
  coco: ["cells.coco.json", (record) => json(toCoco(record))],
  yolo: ["cells.yolo.zip", (record) => zip(toYolo(record).map(([path, text]) => [path, new Blob([text])]))],
  labelstudio: ["cells.labelstudio.json", (record) => json(toLabelStudio(record))],
};

/**
 * Download a count in a format. Return why that is not possible, or "".
 * @param {string} format
 * @param {Collection} collection
 * @param {(sizes?: Map<string, number[]>) => CountRecord} record
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 * @param {string[]} suffixes Of images.
 * @returns {Promise<string>}
 */
export async function download(format, collection, record, texts, percent, suffixes) {
  if (format in FORMATS) {
    const [name, write] = FORMATS[format];
    save(await write(record(), texts, percent), name);
  } else if (format in BOXES) {
    const [name, write] = BOXES[format], facts = record(await sizesOf(collection.uploads));
    if (!boxed(facts).some(({ cells }) => cells.length)) return texts.noBoxes;
    save(await write(facts, texts, percent), name);
  } else {
    const { labelled } = collection;
    if (!labelled.length) return texts.noLabels;
    save(await zip(await toFolders(labelled, suffixes)), "labelled-cells.zip");
  }
  return "";
}

/** @param {Upload[]} uploads */
async function sizesOf(uploads) {
  /** @type {Map<string, number[]>} */
  const sizes = new Map();
  // One after another: together the pictures would be in memory at the same time.
  for (const upload of uploads) {
    const size = await sizeOf(upload);
    if (size) sizes.set(upload.id, size);
  }
  return sizes;
}

// A random UUID (RFC 9562); crypto.randomUUID is for encrypted pages only.
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
