// Pictures of single cells, cut out of the images in the browser.

// Of the longer side of a cell's box: enough around it to tell it, and to teach it.
const TILE_WINDOW = 1.5;
const TRAINING_WINDOW = 2.5;

// Draw a cell, or an image that has no answer yet; nothing where a browser can't show it.
export async function drawTile(canvas, entry) {
  const picture = await load(addressOf(entry));
  if (!picture) return;
  const { x, y, side } = windowOf(entry, picture, TILE_WINDOW);
  const { naturalWidth: width, naturalHeight: height } = picture;
  // Moved to show as much as there is.
  const window = { x: clamp(x, width - side), y: clamp(y, height - side), side };
  draw(canvas.getContext("2d"), picture, window);
  canvas.dataset.drawn = "";
}

// The cell in the middle of a picture in full resolution, or the file itself if no box is known.
export async function toTrainingImage(cell) {
  const picture = cell.box && (await load(addressOf(cell)));
  if (!picture) return cell.image.file;
  const window = windowOf(cell, picture, TRAINING_WINDOW);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.max(1, Math.round(window.side));
  // What lies beyond the picture's border is black, as where the model itself cuts cells out.
  draw(canvas.getContext("2d", { alpha: false }), picture, window);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// Where a browser finds the picture of an entry; null where it can't show it.
export function addressOf(entry) {
  const image = entry.image ?? entry;
  return image.cells.length ? image.shownAddress : image.address;
}

async function load(address) {
  const picture = new Image();
  picture.src = address ?? "";
  return picture.decode().then(() => picture, () => null);
}

// A square around the cell in pixels of the picture; it may reach beyond its border.
function windowOf(entry, picture, zoom) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  // The server's picture of a TIFF may be smaller than the upload that the box is of.
  const scale = entry.image?.size ? width / entry.image.size[0] : 1;
  const box = entry.box?.map((edge) => edge * scale);
  const [left, top, right, bottom] = box ?? [0, 0, width, height];
  const side = box ? Math.max(right - left, bottom - top) * zoom : Math.min(width, height);
  return { x: (left + right - side) / 2, y: (top + bottom - side) / 2, side };
}

function draw(context, picture, { x, y, side }) {
  const { width, height } = context.canvas;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, side, side, 0, 0, width, height);
}

const clamp = (value, high) => Math.min(Math.max(value, 0), Math.max(high, 0));
