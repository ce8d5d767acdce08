// Pictures of single cells, cut out of the images in the browser.

import { isCell } from "./collection.js";

/** @import { Cell, Entry } from "./collection.js" */
/** @import { Upload } from "./queue.js" */

// In longer sides of a cell's box: enough context to recognise the cell, and to train on it.
const TILE_WINDOW = 1.5;
const TRAINING_WINDOW = 2.5;

/**
 * Draw an entry on a tile; nothing if the browser can't show its image.
 * @param {HTMLCanvasElement} canvas
 * @param {Entry} entry
 */
export async function drawTile(canvas, entry) {
  const picture = await load(addressOf(entry));
  if (!picture) return;
  const { x, y, side } = windowOf(entry, picture, TILE_WINDOW);
  const { naturalWidth: width, naturalHeight: height } = picture;
  // Moved into the picture as far as possible.
  draw(canvas, picture, { x: clamp(x, width - side), y: clamp(y, height - side), side });
  canvas.dataset.drawn = "";
}

/**
 * Return a cell in the middle of a picture in full resolution, or null if its box is unknown.
 * @param {Cell} cell
 * @returns {Promise<Blob | null>}
 */
export async function toTrainingImage(cell) {
  const picture = cell.box && (await load(addressOf(cell)));
  if (!picture) return null;
  const window = windowOf(cell, picture, TRAINING_WINDOW);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.max(1, Math.round(window.side));
  draw(canvas, picture, window);
  repeatEdges(canvas, picture, window);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/**
 * Return the width and height of an image in the pixels of its boxes, or null if they are unknown.
 * @param {Upload} image
 */
export async function sizeOf(image) {
  if (image.size) return image.size;
  const picture = await load(addressOf(image));
  return picture && [picture.naturalWidth, picture.naturalHeight];
}

/** @type {WeakMap<File, string>} */
const addresses = new WeakMap();

/**
 * Return the URL of an entry's picture, or null if the browser can't show it.
 * @param {Entry | Upload} entry
 */
export function addressOf(entry) {
  const { file, picture } = "image" in entry ? entry.image : entry;
  if (picture !== undefined) return picture;
  const address = addresses.get(file) ?? URL.createObjectURL(file);
  addresses.set(file, address);
  return address;
}

/** @param {string | null} address */
async function load(address) {
  const picture = new Image();
  picture.src = address ?? "";
  return picture.decode().then(() => picture, () => null);
}

/**
 * Return a square around the cell in pixels of the picture; it may reach beyond the border.
 * @param {Entry} entry
 * @param {HTMLImageElement} picture
 * @param {number} zoom
 */
function windowOf(entry, picture, zoom) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (!isCell(entry) || !entry.box) {
    const side = Math.min(width, height);
    return { x: (width - side) / 2, y: (height - side) / 2, side };
  }
  // The server's picture of a TIFF may be smaller than the upload, whose pixels the box counts.
  const scale = entry.image.size ? width / entry.image.size[0] : 1;
  const [left, top, right, bottom] = entry.box.map((edge) => edge * scale);
  const side = Math.max(right - left, bottom - top) * zoom;
  return { x: (left + right - side) / 2, y: (top + bottom - side) / 2, side };
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {HTMLImageElement} picture
 * @param {{ x: number, y: number, side: number }} window
 */
function draw(canvas, picture, { x, y, side }) {
  const context = canvas.getContext("2d");
  if (!context) return;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, side, side, 0, 0, canvas.width, canvas.height);
}

/**
 * Repeat the edges of a picture where a window reaches beyond it, as the crops of the model do.
 * @param {HTMLCanvasElement} canvas
 * @param {HTMLImageElement} picture
 * @param {{ x: number, y: number, side: number }} window
 */
function repeatEdges(canvas, picture, { x, y, side }) {
  const context = canvas.getContext("2d"), { width: size } = canvas, scale = size / side;
  const left = Math.ceil(-x * scale), top = Math.ceil(-y * scale);
  const right = Math.floor((picture.naturalWidth - x) * scale);
  const bottom = Math.floor((picture.naturalHeight - y) * scale);
  if (left > 0) context?.drawImage(canvas, left, 0, 1, size, 0, 0, left, size);
  if (right < size) context?.drawImage(canvas, right - 1, 0, 1, size, right, 0, size - right, size);
  if (top > 0) context?.drawImage(canvas, 0, top, size, 1, 0, 0, size, top);
  if (bottom < size) context?.drawImage(canvas, 0, bottom - 1, size, 1, 0, bottom, size, size - bottom);
}

/** @param {number} value @param {number} high */
const clamp = (value, high) => Math.min(Math.max(value, 0), Math.max(high, 0));
