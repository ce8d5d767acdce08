// The differential count: how many cells of each class, and what share of all that is.

import { groupOf } from "./collection.js";

const Z = 1.959964;

// The 95 % interval of a share (Wilson 1927), from 0 to 1.
export function wilson(count, total) {
  if (!total) return [0, 1];
  const share = count / total;
  const middle = share + Z ** 2 / (2 * total);
  const half = Z * Math.sqrt((share * (1 - share)) / total + Z ** 2 / (4 * total ** 2));
  const scale = 1 + Z ** 2 / total;
  return [Math.max(0, (middle - half) / scale), Math.min(1, (middle + half) / scale)];
}

export function countGroups(entries) {
  const counts = {};
  for (const entry of entries) counts[groupOf(entry)] = (counts[groupOf(entry)] ?? 0) + 1;
  return counts;
}

export function mountDifferential(section, percent) {
  const rows = [...section.querySelectorAll("[data-label]")];
  return (entries) => {
    const counts = countGroups(entries);
    const total = rows.reduce((sum, row) => sum + (counts[row.dataset.label] ?? 0), 0);
    for (const row of rows) {
      const count = counts[row.dataset.label] ?? 0;
      const [number, share, interval] = row.querySelectorAll("td");
      const [low, high] = wilson(count, total);
      number.textContent = count;
      share.textContent = total ? percent(count / total) : "–";
      interval.querySelector(".interval").textContent = total ? `${percent(low)} – ${percent(high)}` : "–";
      place(interval.querySelector(".span"), low, total ? high - low : 0);
      place(interval.querySelector(".mark"), total ? (count / total) * 0.988 : 0);
      interval.querySelector(".mark").toggleAttribute("hidden", !total);
    }
    section.querySelector("#counted").textContent = total;
    for (const value of section.querySelectorAll("[data-apart]")) {
      value.textContent = counts[value.dataset.apart] ?? 0;
    }
  };
}

function place(rect, from, width) {
  rect.setAttribute("x", 100 * from);
  if (width !== undefined) rect.setAttribute("width", 100 * width);
}
