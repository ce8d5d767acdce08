// All cells as tiles: sorted, filtered by group, one of them chosen, others selected with it. The
// tiles are a listbox: the arrow keys move between them.

import { classesOf, groupOf, isCell } from "./collection.js";
import { countGroups } from "./count.js";
import { find, findAll, repeat } from "./dom.js";
import { kindsOf } from "./kinds.js";
import { drawTile } from "./pictures.js";
import { fill, groupName, labelName, problemOf } from "./texts.js";

/** @import { Cell, Entry } from "./collection.js" */
/** @import { Texts } from "./texts.js" */
/**
 * @typedef {object} View What is shown. It outlives a change of language.
 * @property {string} filter
 * @property {string} sort
 * @property {string | null} chosen
 * @property {Set<string>} selected More cells that a label is for.
 * @property {boolean} onlyConfirmed
 * @property {string} target
 */

/** @type {Record<string, number>} */
const STEPS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity, Backspace: -1 };
// The groups beside the kinds of cells.
const UNDECIDED = ["uncertain", "rejected"], EMPTY = ["none", "open"];

/** Return all groups, in the order that they are shown. @param {Entry[]} entries */
const groupsOf = (entries) => [...kindsOf(classesOf(entries)), ...UNDECIDED, ...EMPTY];

// First what needs a decision, the most doubtful cells before the others.
/** @param {Entry} entry */
function urgency(entry) {
  if (!isCell(entry)) return 4;
  if (entry.own) return 3;
  return { uncertain: 0, rejected: 1, confident: 2 }[entry.verdict];
}

/** @param {Entry} entry */
const confidence = (entry) => (isCell(entry) ? entry.confidence : 0);

/** @type {Record<string, (a: Entry, b: Entry) => number>} */
const ORDERS = {
  order: () => 0,
  review: (a, b) => urgency(a) - urgency(b) || confidence(a) - confidence(b),
  class: () => 0,
};

/**
 * Return functions that show entries, and return those that a label or an acceptance is for.
 * @param {HTMLElement} section
 * @param {HTMLTemplateElement} template
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 * @param {View} view
 * @param {(chosen: boolean) => void} onChange `chosen`: whether a cell was chosen.
 */
export function mountGallery(section, template, texts, percent, view, onChange) {
  const list = find(section, ".groups"), filters = find(section, ".filters");
  const sort = find(section, "#sort", HTMLSelectElement);
  /** @type {Map<string, HTMLElement>} */
  const tiles = new Map();
  /** @type {Entry[]} */
  let shown = [];

  /** @param {Entry} entry @param {string[]} [selected] */
  const choose = (entry, selected = []) => {
    view.chosen = entry.id;
    view.selected = new Set(selected);
    onChange(true);
    focus();
  };

  const focus = (preventScroll = false) => tiles.get(view.chosen ?? "")?.focus({ preventScroll });

  /** @param {string} id */
  const placeOf = (id) => shown.findIndex((entry) => entry.id === id);

  /** @param {Entry} entry */
  const extendTo = (entry) => {
    const from = Math.max(0, placeOf(view.chosen ?? "")), to = placeOf(entry.id);
    const range = shown.slice(Math.min(from, to), Math.max(from, to) + 1).map(({ id }) => id);
    choose(entry, [...view.selected, ...range]);
  };

  /** @param {Entry} entry */
  const toggle = (entry) => {
    const selected = new Set(view.selected.size ? view.selected : [view.chosen ?? ""]);
    if (!selected.delete(entry.id)) selected.add(entry.id);
    choose(entry, [...selected]);
  };

  /** @param {Entry[]} entries */
  const show = (entries) => {
    showFilters(entries);
    sort.value = view.sort;
    const before = placeOf(view.chosen ?? "");
    const groups = grouped(entries
      .filter((entry) => view.filter === "all" || groupOf(entry) === view.filter)
      .sort(ORDERS[view.sort]));
    shown = groups.flatMap(([, members]) => members);
    const focused = list.contains(document.activeElement);
    keepChosen(before);
    showGroups(groups);
    forgetTiles(new Set(entries.map((entry) => entry.id)));
    if (focused && shown.length) focus();
    else if (focused) find(filters, "[data-key=all]").focus();
    list.hidden = !shown.length;
    find(section, ".nothing").hidden = Boolean(shown.length);
    const suggestions = acceptable().length;
    find(section, "[data-do=accept]").hidden = !suggestions;
    find(section, "[data-do=accept]").textContent = fill(texts.accept, suggestions);
    return shown.find((entry) => entry.id === view.chosen) ?? null;
  };

  /** @param {Entry[]} entries */
  const showFilters = (entries) => {
    const counts = countGroups(entries);
    const always = ["all", ...classesOf(entries), ...UNDECIDED];
    const keys = ["all", ...groupsOf(entries)]
      .filter((key) => always.includes(key) || counts[key] || view.filter === key);
    for (const button of repeat(filters, keys)) {
      const key = button.dataset.key ?? "";
      find(button, ".name").textContent = groupName(key, texts);
      find(button, ".count").textContent = String(key === "all" ? entries.length : (counts[key] ?? 0));
      button.setAttribute("aria-pressed", String(key === view.filter));
    }
  };

  /**
   * Return the entries by the group that they are shown in: all in one, unless sorted by class.
   * @param {Entry[]} entries
   * @returns {[string, Entry[]][]}
   */
  const grouped = (entries) => {
    if (view.sort !== "class") return [["all", entries]];
    return groupsOf(entries).map((key) => /** @type {[string, Entry[]]} */ (
      [key, entries.filter((entry) => groupOf(entry) === key)]
    )).filter(([, members]) => members.length);
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

  /** @param {[string, Entry[]][]} groups */
  const showGroups = (groups) => {
    for (const [at, element] of repeat(list, groups.map(([key]) => key)).entries()) {
      const [key, members] = groups[at], heading = find(element, "h3");
      heading.hidden = key === "all";
      heading.textContent = `${groupName(key, texts)} · ${members.length}`;
      element.setAttribute("aria-label", groupName(key, texts));
      replaceTiles(find(element, ".tiles"), members);
    }
  };

  /** @param {HTMLElement} grid @param {Entry[]} members */
  const replaceTiles = (grid, members) => {
    const wanted = members.map((entry) => describeTile(tileOf(entry), entry));
    let place = grid.firstElementChild;
    for (const tile of wanted) {
      if (tile === place) place = place.nextElementSibling;
      else grid.insertBefore(tile, place);
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
    tile.addEventListener("click", (event) => {
      if (event.shiftKey) extendTo(entry);
      else if (event.ctrlKey || event.metaKey) toggle(entry);
      else choose(entry);
    });
    tiles.set(entry.id, tile);
    return tile;
  };

  /** @param {HTMLElement} tile @param {Entry} entry */
  const describeTile = (tile, entry) => {
    const [label, note] = describe(entry, texts, percent);
    const isChosen = entry.id === view.chosen;
    const isSelected = view.selected.size ? view.selected.has(entry.id) : isChosen;
    const state = isCell(entry) ? (entry.own ? "labelled" : entry.verdict) : entry.state;
    const key = [label, note, state, isChosen, isSelected].join();
    if (tile.dataset.shown === key) return tile;
    tile.dataset.shown = key;
    tile.className = `tile ${state}`;
    tile.dataset.kind = isCell(entry) ? (entry.own ?? entry.label ?? "") : "";
    find(tile, ".tile-label").textContent = label;
    find(tile, ".tile-note").textContent = note;
    tile.setAttribute("aria-label", [label, note, nameOf(entry, texts)].join(", "));
    tile.setAttribute("aria-selected", String(isSelected));
    tile.tabIndex = isChosen ? 0 : -1;
    return tile;
  };

  const acceptable = () => shown.filter(isCell).filter((cell) => cell.label && !cell.own);

  /** @param {Cell} cell */
  const selectedWith = (cell) => {
    const selected = shown.filter(isCell).filter(({ id }) => view.selected.has(id));
    return selected.length ? selected : [cell];
  };

  const chooseNext = () => {
    const next = shown[placeOf(view.chosen ?? "") + 1];
    if (next) view.chosen = next.id;
    view.selected.clear();
  };

  /**
   * Return the number of tiles to the nearest one in the row above or below.
   * @param {-1 | 1} direction
   */
  const rowStep = (direction) => {
    const elements = findAll(list, ".tile"), from = placeOf(view.chosen ?? "");
    const { offsetTop: top, offsetLeft: left } = elements[from] ?? list;
    const beyond = elements.filter((tile) => direction * (tile.offsetTop - top) > 0);
    const row = (direction > 0 ? beyond[0] : beyond.at(-1))?.offsetTop;
    const [nearest] = beyond.filter((tile) => tile.offsetTop === row)
      .sort((a, b) => Math.abs(a.offsetLeft - left) - Math.abs(b.offsetLeft - left));
    return nearest ? elements.indexOf(nearest) - from : 0;
  };

  list.addEventListener("keydown", (event) => {
    const rows = /** @type {Record<string, -1 | 1>} */ ({ ArrowUp: -1, ArrowDown: 1 })[event.key];
    const step = rows ? rowStep(rows) : STEPS[event.key];
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const place = placeOf(view.chosen ?? "") + step;
    const entry = shown[Math.min(Math.max(place, 0), shown.length - 1)];
    if (event.shiftKey) extendTo(entry);
    else choose(entry);
  });
  filters.addEventListener("click", (event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest("button");
    if (!button) return;
    view.filter = button.dataset.key ?? "all";
    view.selected.clear();
    onChange(false);
  });
  sort.addEventListener("change", () => {
    view.sort = sort.value;
    onChange(false);
  });
  return { show, focus, acceptable, selectedWith, chooseNext };
}

/** @param {Entry} entry @param {Texts} texts @returns {string} */
export function nameOf(entry, texts) {
  if (!isCell(entry)) return entry.name;
  const { name } = entry.image;
  return entry.of < 2 ? name : `${name}, ${fill(texts.cellOf, entry.index + 1, entry.of)}`;
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
    if (entry.problem) return [texts.groups.open, problemOf(entry.problem, texts).title];
    return [texts[entry.state], ""];
  }
  const label = entry.label ? labelName(entry.label, texts) : entry.found ? texts.groups.rejected : texts.groups.none;
  if (entry.own) {
    const note = entry.own === entry.label ? percent(entry.confidence) : fill(texts.model, label);
    return [`✓ ${labelName(entry.own, texts)}`, note];
  }
  if (!entry.label) return [label, ""];
  const note = percent(entry.confidence);
  return [
    entry.verdict === "confident" ? label : `${label}?`,
    entry.adapted ? fill(texts.adapted.note, note) : note,
  ];
}
