// The differential count: the cells of each kind, their shares, and how many cells it covers.

import { isPartial, summarize, wilson } from "./count.js";
import { find, findAll, repeat } from "./dom.js";
import { PER_HUNDRED, isCounted } from "./kinds.js";
import { fill, groupName, labelName } from "./texts.js";

/** @import { Entry } from "./collection.js" */
/** @import { Summary } from "./count.js" */
/** @import { Texts } from "./texts.js" */

/**
 * Return a function that shows the counts of entries, and returns them.
 * @param {HTMLElement} section
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 */
export function mountDifferential(section, texts, percent) {
  const format = new Intl.NumberFormat(document.documentElement.lang, { maximumFractionDigits: 1 });

  /** @param {Entry[]} entries @param {boolean} onlyConfirmed */
  return (entries, onlyConfirmed) => {
    const summary = summarize(entries, onlyConfirmed);
    const { rows, counted, confirmed, found } = summary;
    for (const [at, row] of repeat(find(section, "tbody"), rows.map(({ kind }) => kind)).entries()) {
      showRow(row, rows[at].count, counted);
      find(row, "th").textContent = labelName(rows[at].kind, texts);
    }
    find(section, "#counted").textContent = String(counted);
    find(section, ".coverage").textContent = fill(texts.coverage, counted, found, confirmed);
    find(section, ".partial").hidden = !isPartial(summary);
    find(section, ".partial .how-many").textContent = fill(texts.partial, found - counted, found);
    showApart(summary);
    return summary;
  };

  /** @param {HTMLElement} row @param {number} count @param {number} total */
  function showRow(row, count, total) {
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

  /** @param {Summary} summary */
  function showApart({ groups, counted }) {
    const outside = Object.keys(groups).filter((kind) => !isCounted(kind));
    const kinds = ["uncertain", "rejected", ...outside, "none", "open"];
    for (const item of repeat(find(section, ".apart"), kinds)) {
      const kind = item.dataset.key ?? "", count = groups[kind] ?? 0;
      find(item, "dt").textContent = groupName(kind, texts);
      find(item, "dd").textContent = kind === PER_HUNDRED && counted
        ? fill(texts.perHundred, count, format.format((100 * count) / counted)) : String(count);
      item.hidden = !count && ["none", "open"].includes(kind);
    }
  }
}
