// The boxes as tasks of Label Studio: the model's as predictions, the visitor's as annotations.
// A project for them has <Image name="image" value="$image"/> and <RectangleLabels name="label" toName="image">.

import { UNDECIDED, boxed } from "./record.js";

/** @import { CountRecord } from "./record.js" */

/** @param {CountRecord} record */
export const toLabelStudio = (record) => boxed(record).map(({ name, version, size, cells }) => {
  const own = cells.filter((cell) => cell.own);
  const regions = cells.map((cell) => ({ ...region(cell, size, cell.label ?? UNDECIDED), score: cell.confidence }));
  return {
    data: { image: name, sample: record.report.sample },
    predictions: [{
      model_version: cells.some(({ adapted }) => adapted) ? `${version}, adapted` : version,
      // Sorted by it, the images with doubtful cells come first.
      score: cells.length ? Math.min(...cells.map(({ confidence }) => confidence)) : 0,
      result: regions,
    }],
    annotations: own.length ? [{ result: own.map((cell) => region(cell, size, cell.own ?? UNDECIDED)) }] : [],
  };
});

/**
 * @param {{ number: number, box: number[] }} cell
 * @param {number[]} size
 * @param {string} label
 */
const region = ({ number, box: [left, top, right, bottom] }, [width, height], label) => ({
  id: `cell-${number}`,
  type: "rectanglelabels",
  from_name: "label",
  to_name: "image",
  original_width: width,
  original_height: height,
  image_rotation: 0,
  value: {
    x: (100 * left) / width,
    y: (100 * top) / height,
    width: (100 * (right - left)) / width,
    height: (100 * (bottom - top)) / height,
    rotation: 0,
    rectanglelabels: [label],
  },
});
