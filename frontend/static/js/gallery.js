// All cells as tiles: sorted, filtered by group, one of them chosen. The tiles are a listbox: arrow
// keys go from one to the next.

import { groupOf } from "./collection.js";
import { countGroups } from "./differential.js";
import { drawTile } from "./pictures.js";

const STEPS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };

const ORDERS = {
  order: () => 0,
  doubt: (a, b) => (a.confidence ?? -1) - (b.confidence ?? -1),
  class: (a, b) => groupOf(a).localeCompare(groupOf(b)),
};

// `view` outlives a change of language: { filter, sort, chosen }. `onChange` is told whether a cell
// was chosen.
export function mountGallery(section, template, texts, percent, view, onChange) {
  const list = section.querySelector(".tiles");
  const filters = [...section.querySelectorAll("[data-filter]")];
  const sort = section.querySelector("#sort");
  const tiles = new Map();
  let shown = [];

  const choose = (entry) => {
    view.chosen = entry.id;
    onChange(true);
    tiles.get(entry.id).focus();
  };

  const show = (entries) => {
    const counts = countGroups(entries);
    for (const button of filters) {
      const { filter } = button.dataset;
      const count = filter === "all" ? entries.length : (counts[filter] ?? 0);
      button.querySelector("span").textContent = count;
      button.setAttribute("aria-pressed", filter === view.filter);
      button.hidden = filter === "open" && !count && view.filter !== "open";
    }
    sort.value = view.sort;
    const before = shown.findIndex((entry) => entry.id === view.chosen);
    shown = entries
      .filter((entry) => view.filter === "all" || groupOf(entry) === view.filter)
      .sort(ORDERS[view.sort]);
    const focused = list.contains(document.activeElement);
    keepChosen(before);
    replaceTiles();
    forgetTiles(new Set(entries.map((entry) => entry.id)));
    if (focused && !list.contains(document.activeElement)) tiles.get(view.chosen)?.focus();
    list.hidden = !shown.length;
    section.querySelector(".nothing").hidden = Boolean(shown.length);
    section.querySelector("[data-do=confirm]").hidden = !confirmable().length;
    return shown.find((entry) => entry.id === view.chosen) ?? null;
  };

  // A cell that was labelled may leave the group: its neighbour is next. An answered image is its
  // first cell.
  const keepChosen = (before) => {
    if (shown.some((entry) => entry.id === view.chosen)) return;
    const answered = shown.find((entry) => entry.image?.id === view.chosen);
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

  // Of images that were answered, or cleared away.
  const forgetTiles = (kept) => {
    for (const id of tiles.keys()) if (!kept.has(id)) tiles.delete(id);
  };

  const tileOf = (entry) => {
    if (!tiles.has(entry.id)) {
      const tile = template.content.firstElementChild.cloneNode(true);
      tile.dataset.id = entry.id;
      drawTile(tile.querySelector("canvas"), entry);
      tile.addEventListener("click", () => choose(entry));
      tiles.set(entry.id, tile);
    }
    return tiles.get(entry.id);
  };

  const fill = (tile, entry) => {
    const [label, note] = describe(entry, texts, percent);
    const isChosen = entry.id === view.chosen;
    const state = [label, note, entry.state ?? entry.own, isChosen].join();
    if (tile.dataset.shown === state) return tile;
    tile.dataset.shown = state;
    tile.className = `tile ${entry.cells ? entry.state : entry.own ? "labelled" : entry.verdict}`;
    tile.querySelector(".tile-label").textContent = label;
    tile.querySelector(".tile-note").textContent = note;
    tile.setAttribute("aria-label", [label, note, nameOf(entry, texts)].join(", "));
    tile.setAttribute("aria-selected", isChosen);
    tile.tabIndex = isChosen ? 0 : -1;
    return tile;
  };

  const confirmable = () => shown.filter((entry) => entry.label && !entry.own);

  const perRow = () => {
    const elements = [...list.children];
    const first = elements[0].offsetTop;
    const row = elements.findIndex((tile) => tile.offsetTop !== first);
    return row < 0 ? elements.length : row;
  };

  list.addEventListener("keydown", (event) => {
    const step = { ...STEPS, ArrowUp: -perRow(), ArrowDown: perRow() }[event.key];
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const from = shown.findIndex((entry) => entry.id === view.chosen);
    choose(shown[Math.min(Math.max(from + step, 0), shown.length - 1)]);
  });
  for (const button of filters) {
    button.addEventListener("click", () => {
      view.filter = button.dataset.filter;
      onChange(false);
    });
  }
  sort.addEventListener("change", () => {
    view.sort = sort.value;
    onChange(false);
  });
  return { show, confirmable };
}

export function nameOf(entry, texts) {
  if (entry.cells) return entry.name;
  const { cells, name } = entry.image;
  if (cells.length < 2) return name;
  return `${name}, ${texts.cellOf.replace("{}", entry.index + 1).replace("{}", cells.length)}`;
}

function describe(entry, texts, percent) {
  if (entry.cells) {
    if (entry.state === "failed") return [texts.notRead, texts.problems[entry.problem].title];
    return [texts[entry.state], ""];
  }
  const said = entry.label ? texts.cells[entry.label] : entry.found ? texts.cells.OTHER : texts.nothing;
  if (entry.own) {
    const same = entry.own === (entry.label ?? "OTHER");
    return [`✓ ${texts.cells[entry.own]}`, same ? percent(entry.confidence) : texts.model.replace("{}", said)];
  }
  if (entry.verdict === "rejected") return [said, texts.verdicts.rejected.badge];
  return [entry.verdict === "confident" ? said : `${said}?`, percent(entry.confidence)];
}
