// One cell in detail: its picture with outlines, the answer, the heat map and the visitor's label.

import { isCell } from "./collection.js";
import { find, repeat } from "./dom.js";
import { nameOf } from "./gallery.js";
import { keysOf } from "./kinds.js";
import { addressOf } from "./pictures.js";
import { Problem, explain } from "./service.js";
import { fill, labelName, problemOf } from "./texts.js";

/** @import { Cell, Collection, Entry } from "./collection.js" */
/** @import { Upload } from "./queue.js" */
/** @import { Texts } from "./texts.js" */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return functions that show an entry and handle keys.
 * @param {HTMLElement} card
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 * @param {Collection} collection
 * @param {(id: string) => void} onChoose
 * @param {(cell: Cell, labelOf: (cell: Cell) => string | null) => void} onLabel
 */
export function mountViewer(card, texts, percent, collection, onChoose, onLabel) {
  const picture = find(card, "img.picture", HTMLImageElement);
  const heat = find(card, ".heat", HTMLImageElement);
  const outlines = find(card, ".outlines", SVGElement);
  const opacity = find(card, "input[type=range]", HTMLInputElement);
  const explainButton = find(card, "[data-do=explain]", HTMLButtonElement);
  const note = find(card, ".looked .hint");
  const labels = find(card, ".labels");
  /** @type {Entry | null} */
  let shown = null;
  /** @type {Set<string>} The images whose heat map was asked for. */
  const explaining = new Set();

  /** @returns {Upload | null} */
  const imageOf = () => (shown && isCell(shown) ? shown.image : shown);

  /** @param {Entry | null} entry @param {string[]} classes */
  const show = (entry, classes) => {
    card.hidden = !entry;
    const moved = entry?.id !== shown?.id;
    shown = entry;
    if (!entry) return;
    const image = isCell(entry) ? entry.image : entry;
    showPicture(image);
    showOutlines(collection.cellsOf(image.id));
    const caption = find(card, "figcaption");
    caption.textContent = caption.title = nameOf(entry, texts);
    find(card, ".of-cell").hidden = labels.hidden = !isCell(entry);
    find(card, "[data-do=retry-one]").hidden = !["failed", "cancelled"].includes(image.state);
    card.className = `card result viewer ${isCell(entry) ? entry.verdict : entry.state}`;
    if (isCell(entry)) showAnswer(entry, classes);
    else showState(entry);
    if (moved) note.textContent = "";
    showHeat(image);
  };

  /** @param {Upload} image */
  const showPicture = (image) => {
    const address = addressOf(image);
    if (picture.dataset.of !== `${image.id}${address}`) {
      picture.dataset.of = `${image.id}${address}`;
      showPlaceholder(!address);
      if (address) picture.src = address;
    }
  };

  /** @param {Cell[]} cells */
  const showOutlines = (cells) => {
    outlines.replaceChildren(...cells.flatMap(outline));
    fitOutlines();
  };

  /** @param {boolean} missing */
  const showPlaceholder = (missing) => {
    find(card, ".frame").hidden = missing;
    find(card, ".placeholder-picture").hidden = !missing;
  };

  const fitOutlines = () => {
    const size = imageOf()?.size ?? [picture.naturalWidth, picture.naturalHeight];
    if (size[0]) outlines.setAttribute("viewBox", `0 0 ${size.join(" ")}`);
  };

  /** @param {Cell} cell */
  const outline = (cell) => {
    if (!cell.box) return [];
    const [left, top, right, bottom] = cell.box;
    const rect = document.createElementNS(SVG, "rect");
    const sides = { x: left, y: top, width: right - left, height: bottom - top, rx: 6 };
    for (const [name, value] of Object.entries(sides)) rect.setAttribute(name, String(value));
    rect.classList.add(cell.own ? "labelled" : cell.verdict);
    rect.dataset.kind = cell.own ?? cell.label ?? "";
    if (cell.id === shown?.id) rect.classList.add("chosen");
    rect.addEventListener("click", () => onChoose(cell.id));
    return [rect];
  };

  /** @param {Upload} image */
  const showState = (image) => {
    const ended = image.problem || image.state === "cancelled";
    const problem = image.problem ? problemOf(image.problem, texts) : null;
    find(card, ".badge").textContent = ended ? texts.groups.open : texts.waiting;
    find(card, ".badge").hidden = false;
    find(card, "#verdict").textContent = problem?.title ?? texts[image.state];
    find(card, ".meaning").textContent = problem?.advice ?? "";
  };

  /** @param {Cell} cell @param {string[]} classes */
  const showAnswer = (cell, classes) => {
    const verdict = texts.verdicts[cell.verdict];
    find(card, ".badge").textContent = cell.own ? texts.labelled : verdict.badge;
    find(card, ".badge").hidden = !cell.own && !cell.label;
    find(card, "#verdict").textContent = headingOf(cell, texts);
    find(card, ".meaning").textContent = meaningOf(cell, texts);
    find(card, ".bars").hidden = !cell.found;
    // The heat map is evidence for the network's own answer.
    find(card, ".looked").hidden = !cell.found || Boolean(cell.adapted);
    const shares = Object.entries(cell.probabilities).sort((a, b) => b[1] - a[1]);
    const rows = repeat(find(card, "tbody"), Object.keys(shares));
    for (const [index, [label, share]] of shares.entries()) {
      rows[index].dataset.kind = label;
      find(rows[index], "th").textContent = labelName(label, texts);
      find(rows[index], "rect", SVGElement).setAttribute("width", String(100 * share));
      find(rows[index], ".percent").textContent = percent(share);
    }
    showLabels(cell, classes);
    const by = cell.adapted ? texts.adapted.by : texts.by;
    find(card, ".by").textContent = fill(by, cell.image.version);
  };

  /** @param {Cell} cell @param {string[]} classes */
  const showLabels = (cell, classes) => {
    const keys = [...keysOf(classes)];
    const groups = [keys.slice(0, classes.length), keys.slice(classes.length)];
    for (const [at, list] of [find(labels, ".classes"), find(labels, ".others")].entries()) {
      const buttons = repeat(list, groups[at].map(([, kind]) => kind));
      for (const [index, [key, kind]] of groups[at].entries()) {
        find(buttons[index], "kbd").textContent = key.toUpperCase();
        find(buttons[index], ".name").textContent = labelName(kind, texts);
        buttons[index].setAttribute("aria-keyshortcuts", key.toUpperCase());
        buttons[index].setAttribute("aria-pressed", String(kind === cell.own));
      }
    }
    const isOther = cell.own && !classes.includes(cell.own);
    if (isOther) find(labels, "details", HTMLDetailsElement).open = true;
  };

  /** @param {Upload} image */
  const showHeat = (image) => {
    heat.hidden = !image.heatMap || find(card, ".looked").hidden;
    if (image.heatMap) heat.src = image.heatMap;
    showOpacity();
    find(card, ".looked label").hidden = !image.heatMap;
    explainButton.hidden = Boolean(image.heatMap);
    explainButton.disabled = explaining.has(image.id);
  };

  const showOpacity = () => { heat.style.opacity = String(Number(opacity.value) / 100); };

  explainButton.addEventListener("click", async () => {
    const image = imageOf();
    if (!image) return;
    explaining.add(image.id);
    showHeat(image);
    note.textContent = texts.asking;
    let message = "";
    try {
      const heatMap = await explain(image.file, image.version);
      collection.update(image.id, { heatMap });
    } catch (error) {
      message = error instanceof Problem ? problemOf(error.kind, texts).title : texts.noExplanation;
    }
    explaining.delete(image.id);
    note.textContent = message;
    const now = imageOf();
    if (now?.id !== image.id) return;
    showHeat(now);
    if (now.heatMap) opacity.focus();
  });

  /** @param {string} key */
  const onKey = (key) => {
    if (!shown || !isCell(shown)) return false;
    const kind = keysOf(Object.keys(shown.probabilities)).get(key);
    if (key === "0") onLabel(shown, () => null);
    else if (key === " ") onLabel(shown, (cell) => cell.own ?? cell.label);
    else if (kind) onLabel(shown, () => kind);
    else return false;
    return true;
  };

  picture.addEventListener("load", fitOutlines);
  picture.addEventListener("error", () => showPlaceholder(true));
  opacity.addEventListener("input", showOpacity);
  find(card, "[data-do=retry-one]").addEventListener("click", () => {
    const image = imageOf();
    if (image) collection.retry([image]);
  });
  labels.addEventListener("click", (event) => {
    const button = /** @type {HTMLElement} */ (event.target).closest("button");
    if (!button || !shown || !isCell(shown)) return;
    const pressed = button.getAttribute("aria-pressed") === "true";
    const kind = pressed ? null : (button.dataset.key ?? null);
    onLabel(shown, () => kind);
  });
  return { show, onKey };
}

/** @param {Cell} cell @param {Texts} texts @returns {string} */
export function headingOf(cell, texts) {
  if (cell.own) return labelName(cell.own, texts);
  if (!cell.label) return cell.found ? texts.groups.rejected : texts.groups.none;
  return `${labelName(cell.label, texts)}${cell.verdict === "uncertain" ? "?" : ""}`;
}

/** @param {Cell} cell @param {Texts} texts @returns {string} */
function meaningOf(cell, texts) {
  if (cell.own) return "";
  if (cell.adapted) return texts.adapted.meaning;
  return cell.found ? texts.verdicts[cell.verdict].meaning : texts.nothingFound;
}
