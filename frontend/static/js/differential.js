// The differential count: the number of cells of each class and their shares.

import { classesOf, groupOf } from "./collection.js";
import { find, findAll, repeat } from "./dom.js";
import { labelName } from "./texts.js";

/** @import { Entry } from "./collection.js" */
/** @import { Texts } from "./texts.js" */

const Z = 1.959964;

/**
 * Return the 95 % confidence interval of a share (Wilson 1927), from 0 to 1.
 * @param {number} count
 * @param {number} total
 */
export function wilson(count, total) {
  if (!total) return [0, 1];
  const share = count / total;
  const middle = share + Z ** 2 / (2 * total);
  const half = Z * Math.sqrt((share * (1 - share)) / total + Z ** 2 / (4 * total ** 2));
  const scale = 1 + Z ** 2 / total;
  return [Math.max(0, (middle - half) / scale), Math.min(1, (middle + half) / scale)];
}

/** @param {Entry[]} entries */
export function countGroups(entries) {
  /** @type {Record<string, number>} */
  const counts = {};
  for (const entry of entries) counts[groupOf(entry)] = (counts[groupOf(entry)] ?? 0) + 1;
  return counts;
}

/**
 * Return a function that shows the counts of entries.
 * @param {HTMLElement} section
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 */
export function mountDifferential(section, texts, percent) {
  /** @param {Entry[]} entries */
  return (entries) => {
    const groups = countGroups(entries);
    const classes = classesOf(entries);
    const counts = classes.map((label) => groups[label] ?? 0);
    const total = counts.reduce((sum, count) => sum + count, 0);
    for (const [index, row] of repeat(find(section, "tbody"), classes).entries()) {
      const count = counts[index];
      find(row, "th").textContent = labelName(classes[index], texts);
      const [number, share] = findAll(row, ".number-cell");
      const [low, high] = wilson(count, total);
      number.textContent = String(count);
      share.textContent = total ? percent(count / total) : "–";
      find(row, ".interval").textContent = total ? `${percent(low)} – ${percent(high)}` : "–";
      const span = find(row, ".span", SVGElement), mark = find(row, ".mark", SVGElement);
      span.setAttribute("x", String(100 * low));
      span.setAttribute("width", String(total ? 100 * (high - low) : 0));
      mark.setAttribute("x", String(total ? (98.8 * count) / total : 0));
      mark.toggleAttribute("hidden", !total);
    }
    find(section, "#counted").textContent = String(total);
    for (const value of findAll(section, "[data-apart]")) {
      value.textContent = String(groups[value.dataset.apart ?? ""] ?? 0);
    }
  };
}
