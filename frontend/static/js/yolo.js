// The boxes as YOLO labels: a text file for each image, and the names of the classes.

import { UNDECIDED, boxClasses, boxed } from "./record.js";

/** @import { CountRecord } from "./record.js" */

/**
 * Return the files by their paths. The images belong beside labels/, in images/.
 * @param {CountRecord} record
 * @returns {[string, string][]}
 */
export function toYolo(record) {
  const classes = boxClasses(record), images = boxed(record);
  const stems = distinct(images.map(({ name }) => stem(name)));
  const names = classes.map((name, at) => `  ${at}: ${JSON.stringify(name)}\n`).join("");
  return [
    ["data.yaml", `path: .\ntrain: images\nval: images\nnames:\n${names}`],
    ["classes.txt", classes.map((name) => `${name}\n`).join("")],
    ...images.map(({ size: [width, height], cells }, at) => /** @type {[string, string]} */ ([
      `labels/${stems[at]}.txt`,
      cells.map(({ box: [left, top, right, bottom], final }) => {
        const sides = [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height];
        return `${[classes.indexOf(final ?? UNDECIDED), ...sides.map((side) => side.toFixed(6))].join(" ")}\n`;
      }).join(""),
    ])),
  ];
}

// A label file has the name of its image. An opened count may name an image like a path.
/** @param {string} name */
const stem = (name) => name.replace(/\.[^.]*$/, "").replace(/[\p{C}\\/:*?"<>|]/gu, "_").replace(/^\.+/, "_") || "image";

/** Number names that are repeated, also in other case. @param {string[]} names */
function distinct(names) {
  /** @type {Set<string>} */
  const taken = new Set();
  return names.map((name) => {
    let free = name;
    for (let number = 2; taken.has(free.toLowerCase()); number++) free = `${name}-${number}`;
    taken.add(free.toLowerCase());
    return free;
  });
}
