// Pictures of single cells, cut out of the images in the browser.

const TILE = 200;
// Of the longer side of a cell's box: enough around it to tell it, and to teach it.
const TILE_WINDOW = 1.5;
const TRAINING_WINDOW = 2.5;

// A small picture for the gallery; null where a browser can't show the image.
export async function cropToAddress(cell) {
  const picture = await load(cell.image.shownAddress);
  if (!picture) return null;
  const { x, y, side } = windowOf(cell, picture, TILE_WINDOW);
  const { naturalWidth: width, naturalHeight: height } = picture;
  // Moved to show as much as there is.
  const within = { x: clamp(x, width - side), y: clamp(y, height - side), side };
  return URL.createObjectURL(await toBlob(crop(picture, within, TILE), "image/jpeg"));
}

// The cell in the middle of a picture in full resolution, or the file itself if no box is known.
export async function toTrainingImage(cell) {
  const { file, shownAddress } = cell.image;
  const picture = cell.box && (await load(shownAddress));
  if (!picture) return file;
  const window = windowOf(cell, picture, TRAINING_WINDOW);
  return toBlob(crop(picture, window, Math.round(window.side)), "image/png");
}

async function load(address) {
  const picture = new Image();
  picture.src = address ?? "";
  return picture.decode().then(() => picture, () => null);
}

// A square around the cell in pixels of the picture; it may reach beyond its border.
function windowOf({ box, image }, picture, zoom) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  // The server's picture of a TIFF may be smaller than the upload that the box is of.
  const scale = image.size ? width / image.size[0] : 1;
  const [left, top, right, bottom] = box ? box.map((edge) => edge * scale) : [0, 0, width, height];
  const side = box ? Math.max(right - left, bottom - top) * zoom : Math.min(width, height);
  return { x: (left + right - side) / 2, y: (top + bottom - side) / 2, side };
}

// What lies beyond the picture's border is black, as where the model itself cuts cells out.
function crop(picture, { x, y, side }, size) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.max(1, size);
  const context = canvas.getContext("2d", { alpha: false });
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, side, side, 0, 0, canvas.width, canvas.height);
  return canvas;
}

const clamp = (value, high) => Math.min(Math.max(value, 0), Math.max(high, 0));

const toBlob = (canvas, type) => new Promise((resolve) => canvas.toBlob(resolve, type, 0.9));
