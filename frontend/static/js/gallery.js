// All cells as tiles: sorted, filtered by group, one of them chosen. The tiles are a listbox: the
// arrow keys move between them.

import { classesOf, groupOf, isCell } from "./collection.js";
import { countGroups } from "./differential.js";
import { find, findAll, repeat } from "./dom.js";
import { drawTile } from "./pictures.js";
import { labelName, problemOf } from "./texts.js";

/** @import { Cell, Entry } from "./collection.js" */
/** @import { Texts } from "./texts.js" */
/** @typedef {{ filter: string, sort: string, chosen: string | null }} View */

/** @type {Record<string, number>} */
const STEPS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };

/** @param {Entry} entry */
const confidence = (entry) => (isCell(entry) ? entry.confidence : -1);

/** @type {Record<string, (a: Entry, b: Entry) => number>} */
const ORDERS = {
  order: () => 0,
  confidence: (a, b) => confidence(a) - confidence(b),
  class: (a, b) => groupOf(a).localeCompare(groupOf(b)),
};

/**
 * Return functions that show entries and return the cells that can be confirmed.
 * @param {HTMLElement} section
 * @param {HTMLTemplateElement} template
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 * @param {View} view It outlives a change of language.
 * @param {(chosen: boolean) => void} onChange `chosen`: whether a cell was chosen.
 */
export function mountGallery(section, template, texts, percent, view, onChange) {
  const list = find(section, ".tiles");
  const filters = find(section, ".filters"), classFilters = find(filters, ".classes");
  const sort = find(section, "#sort", HTMLSelectElement);
  /** @type {Map<string, HTMLElement>} */
  const tiles = new Map();
  /** @type {Entry[]} */
  let shown = [];

  /** @param {Entry} entry */
  const choose = (entry) => {
    view.chosen = entry.id;
    onChange(true);
    tiles.get(entry.id)?.focus();
  };

  /** @param {Entry[]} entries */
  const show = (entries) => {
    showFilters(entries);
    sort.value = view.sort;
    const before = shown.findIndex((entry) => entry.id === view.chosen);
    shown = entries
      .filter((entry) => view.filter === "all" || groupOf(entry) === view.filter)
      .sort(ORDERS[view.sort]);
    const focused = list.contains(document.activeElement);
    keepChosen(before);
    replaceTiles();
    forgetTiles(new Set(entries.map((entry) => entry.id)));
    if (focused && !list.contains(document.activeElement)) tiles.get(view.chosen ?? "")?.focus();
    list.hidden = !shown.length;
    find(section, ".nothing").hidden = Boolean(shown.length);
    find(section, "[data-do=confirm]").hidden = !confirmable().length;
    return shown.find((entry) => entry.id === view.chosen) ?? null;
  };

  /** @param {Entry[]} entries */
  const showFilters = (entries) => {
    const counts = countGroups(entries);
    for (const button of repeat(classFilters, classesOf(entries))) {
      find(button, ".name").textContent = labelName(button.dataset.key ?? "", texts);
    }
    for (const button of findAll(filters, "button")) {
      const filter = button.dataset.key ?? "all";
      const count = filter === "all" ? entries.length : (counts[filter] ?? 0);
      find(button, ".count").textContent = String(count);
      button.setAttribute("aria-pressed", String(filter === view.filter));
      button.hidden = filter === "open" && !count && view.filter !== "open";
    }
  };

  // If the chosen cell left the group, its neighbour is next. An image with an answer is replaced
  // by its first cell.
  /** @param {number} before */
  const keepChosen = (before) => {
    if (shown.some((entry) => entry.id === view.chosen)) return;
    const answered = shown.find((entry) => isCell(entry) && entry.image.id === view.chosen);
    const next = answered ?? shown[Math.min(Math.max(before, 0), shown.length - 1)];
    view.chosen = next?.id ?? null;
  };

  const replaceTiles = () => {
    const wanted = shown.map((entry) => fill(tileOf(entry), entry));
    let place = list.firstElementChild;
    for (const tile of wanted) {
      if (tile === place) place = place.nextElementSibling;
      else list.insertBefore(tile, place);
    }
    while (place) {
      const next = place.nextElementSibling;
      place.remove();
      place = next;
    }
  };

  /** @param {Set<string>} kept */
  const forgetTiles = (kept) => {
    for (const id of tiles.keys()) if (!kept.has(id)) tiles.delete(id);
  };

  /** @param {Entry} entry */
  const tileOf = (entry) => {
    const known = tiles.get(entry.id);
    if (known) return known;
    const tile = /** @type {HTMLElement} */ (find(template.content, ".tile").cloneNode(true));
    tile.dataset.id = entry.id;
    drawTile(find(tile, "canvas", HTMLCanvasElement), entry);
    tile.addEventListener("click", () => choose(entry));
    tiles.set(entry.id, tile);
    return tile;
  };

  /** @param {HTMLElement} tile @param {Entry} entry */
  const fill = (tile, entry) => {
    const [label, note] = describe(entry, texts, percent);
    const isChosen = entry.id === view.chosen;
    const state = isCell(entry) ? (entry.own ? "labelled" : entry.verdict) : entry.state;
    const key = [label, note, state, isChosen].join();
    if (tile.dataset.shown === key) return tile;
    tile.dataset.shown = key;
    tile.className = `tile ${state}`;
    find(tile, ".tile-label").textContent = label;
    find(tile, ".tile-note").textContent = note;
    tile.setAttribute("aria-label", [label, note, nameOf(entry, texts)].join(", "));
    tile.setAttribute("aria-selected", String(isChosen));
    tile.tabIndex = isChosen ? 0 : -1;
    return tile;
  };

  const confirmable = () => shown.filter(isCell).filter((cell) => cell.label && !cell.own);

  const perRow = () => {
    const elements = findAll(list, ".tile");
    const row = elements.findIndex((tile) => tile.offsetTop !== elements[0].offsetTop);
    return row < 0 ? elements.length : row;
  };

  list.addEventListener("keydown", (event) => {
    const step = { ...STEPS, ArrowUp: -perRow(), ArrowDown: perRow() }[event.key];
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const from = shown.findIndex((entry) => entry.id === view.chosen);
    choose(shown[Math.min(Math.max(from + step, 0), shown.length - 1)]);
  });
  filters.addEventListener("click", (event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest("button");
    if (!button) return;
    view.filter = button.dataset.key ?? "all";
    onChange(false);
  });
  sort.addEventListener("change", () => {
    view.sort = sort.value;
    onChange(false);
  });
  return { show, confirmable };
}

/** @param {Entry} entry @param {Texts} texts @returns {string} */
export function nameOf(entry, texts) {
  if (!isCell(entry)) return entry.name;
  const { cells, name } = entry.image;
  if (cells.length < 2) return name;
  return `${name}, ${texts.cellOf.replace("{}", entry.index + 1).replace("{}", cells.length)}`;
}

/**
 * Return the label and the note of a tile.
 * @param {Entry} entry
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 * @returns {[string, string]}
 */
function describe(entry, texts, percent) {
  if (!isCell(entry)) {
    if (entry.problem) return [texts.notRead, problemOf(entry.problem, texts).title];
    return [texts[entry.state], ""];
  }
  const label = entry.found ? labelName(entry.label ?? "OTHER", texts) : texts.nothing;
  if (entry.own) {
    const same = entry.own === (entry.label ?? "OTHER");
    return [`✓ ${labelName(entry.own, texts)}`, same ? percent(entry.confidence) : texts.model.replace("{}", label)];
  }
  if (entry.verdict === "rejected") return [label, texts.verdicts.rejected.badge];
  return [entry.verdict === "confident" ? label : `${label}?`, percent(entry.confidence)];
}
