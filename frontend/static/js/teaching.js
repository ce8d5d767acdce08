// The panel for training on the visitor's labels: what is missing, what was learned, and the switch.

import { LEAST_CLASSES, LEAST_LABELS, isCurrent, lessonsOf, teach } from "./adaptation.js";
import { classesOf, isCell } from "./collection.js";
import { find, repeat } from "./dom.js";
import { fill, labelName } from "./texts.js";

/** @import { Check, Lessons, Recipe } from "./adaptation.js" */
/** @import { Collection, Entry } from "./collection.js" */
/** @import { Texts } from "./texts.js" */

/**
 * Return a function that shows what the labels of a count allow.
 * @param {HTMLElement} section
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 * @param {Record<string, Recipe>} recipes By version.
 * @param {Collection} collection
 */
export function mountTeaching(section, texts, percent, recipes, collection) {
  const button = find(section, "[data-do=teach]", HTMLButtonElement);
  const choice = find(section, "#adapted", HTMLInputElement);
  /** @type {Lessons} */
  let lessons;

  /** @param {Entry[]} entries */
  const show = (entries) => {
    const recipe = recipes[collection.version ?? ""], { head } = collection;
    const cells = entries.filter(isCell);
    section.classList.toggle("on", Boolean(head?.on));
    section.hidden = !head && !(recipe && cells.some(({ embedding }) => embedding));
    if (section.hidden) return;
    lessons = lessonsOf(cells, classesOf(entries));
    const current = head && isCurrent(head, lessons);
    showCounts();
    find(section, ".needed").hidden = lessons.isEnough;
    find(section, ".left").hidden = !lessons.isEnough || lessons.known.length === lessons.counts.size;
    button.hidden = !recipe || !lessons.isEnough || Boolean(current);
    button.textContent = fill(texts.teach.train, lessons.learned.length);
    find(section, ".taught").hidden = !head;
    find(section, ".outdated").hidden = !head || Boolean(current);
    if (!head) return;
    choice.checked = head.on;
    showCheck(head.check);
  };

  const showCounts = () => {
    const items = repeat(find(section, ".lessons"), [...lessons.counts.keys()]);
    for (const item of items) {
      const kind = item.dataset.key ?? "", count = lessons.counts.get(kind) ?? 0;
      const missing = LEAST_LABELS - count;
      item.classList.toggle("enough", missing <= 0);
      find(item, "dt").textContent = labelName(kind, texts);
      find(item, "dd").textContent = missing > 0 ? fill(texts.teach.missing, missing) : `✓ ${count}`;
    }
  };

  /** @param {Check | null} check */
  const showCheck = (check) => {
    find(section, ".checked").hidden = find(section, ".how").hidden = !check;
    find(section, ".unchecked").hidden = Boolean(check);
    find(section, ".no-better").hidden = !check || check.adapted > check.model;
    if (!check) return;
    const share = (/** @type {number} */ right) =>
      fill(texts.teach.right, percent(right / check.cells), right, check.cells);
    find(section, ".right-adapted").textContent = share(check.adapted);
    find(section, ".right-model").textContent = share(check.model);
  };

  button.addEventListener("click", () => {
    const recipe = recipes[collection.version ?? ""];
    if (!recipe) return;
    collection.adaptTo(teach(lessons, recipe), lessons.learned.length);
    choice.focus();
  });
  choice.addEventListener("change", () => collection.useHead(choice.checked));
  find(section, ".needed").textContent = fill(texts.teach.needed, LEAST_CLASSES, LEAST_LABELS);
  return show;
}
