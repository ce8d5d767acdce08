// The boxes as COCO JSON, the format of detection data sets.

import { UNDECIDED, boxClasses, boxed } from "./record.js";

/** @import { CountRecord } from "./record.js" */

/** @param {CountRecord} record */
export function toCoco(record) {
  const classes = boxClasses(record), images = boxed(record);
  const annotations = images.flatMap(({ cells }, at) => cells.map((cell) => {
    const [left, top, right, bottom] = cell.box;
    return {
      image_id: at + 1,
      category_id: classes.indexOf(cell.final ?? UNDECIDED) + 1,
      bbox: [left, top, right - left, bottom - top],
      area: (right - left) * (bottom - top),
      segmentation: [],
      iscrowd: 0,
      attributes: {
        cell: cell.number, confirmed: Boolean(cell.own), model_label: cell.label,
        verdict: cell.verdict, probability: cell.confidence, adapted: cell.adapted,
      },
    };
  }));
  return {
    info: {
      description: `Sample ${record.report.sample}`,
      version: record.version,
      year: record.date.getUTCFullYear(),
      contributor: record.report.reviewer,
      date_created: record.date.toISOString(),
    },
    licenses: [],
    images: images.map(({ name, size: [width, height] }, at) => ({ id: at + 1, file_name: name, width, height })),
    annotations: annotations.map((annotation, at) => ({ id: at + 1, ...annotation })),
    categories: classes.map((name, at) => ({ id: at + 1, name, supercategory: "cell" })),
  };
}
