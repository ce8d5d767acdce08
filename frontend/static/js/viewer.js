// One cell in detail: its picture with outlines, the answer, the heat map and the visitor's label.

import { classesOf, isCell } from "./collection.js";
import { find, findAll, repeat } from "./dom.js";
import { nameOf } from "./gallery.js";
import { addressOf } from "./pictures.js";
import { Problem, explain } from "./service.js";
import { labelName, problemOf } from "./texts.js";

/** @import { Cell, Collection, Entry, Upload } from "./collection.js" */
/** @import { Texts } from "./texts.js" */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return functions that show an entry and handle keys.
 * @param {HTMLElement} card
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 * @param {Collection} collection
 * @param {(cell: Cell) => void} onChoose
 */
export function mountViewer(card, texts, percent, collection, onChoose) {
  const picture = find(card, "img.picture", HTMLImageElement);
  const heat = find(card, ".heat", HTMLImageElement);
  const outlines = find(card, ".outlines", SVGElement);
  const opacity = find(card, "input[type=range]", HTMLInputElement);
  const explainButton = find(card, "[data-do=explain]", HTMLButtonElement);
  const note = find(card, ".looked .hint");
  const labels = find(card, ".labels");
  /** @type {Entry | null} */
  let shown = null;

  const imageOf = () => (shown && isCell(shown) ? shown.image : shown);

  /** @param {Entry | null} entry */
  const show = (entry) => {
    card.hidden = !entry;
    if (!entry) return;
    const moved = entry !== shown;
    shown = entry;
    const image = isCell(entry) ? entry.image : entry;
    showPicture(image);
    const caption = find(card, "figcaption");
    caption.textContent = caption.title = nameOf(entry, texts);
    find(card, ".of-cell").hidden = find(card, ".looked").hidden = !isCell(entry);
    find(card, "[data-do=retry-one]").hidden = !["failed", "cancelled"].includes(image.state);
    card.className = `card result viewer ${isCell(entry) ? entry.verdict : entry.state}`;
    if (isCell(entry)) showAnswer(entry);
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
    outlines.replaceChildren(...image.cells.flatMap(outline));
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
    rect.classList.add(cell.verdict);
    if (cell === shown) rect.classList.add("chosen");
    rect.addEventListener("click", () => onChoose(cell));
    return [rect];
  };

  /** @param {Upload} image */
  const showState = (image) => {
    const ended = image.problem || image.state === "cancelled";
    const problem = image.problem ? problemOf(image.problem, texts) : null;
    find(card, ".badge").textContent = ended ? texts.notRead : texts.waiting;
    find(card, "#verdict").textContent = problem?.title ?? texts[image.state];
    find(card, ".meaning").textContent = problem?.advice ?? "";
  };

  /** @param {Cell} cell */
  const showAnswer = (cell) => {
    const verdict = texts.verdicts[cell.verdict];
    find(card, ".badge").textContent = verdict.badge;
    find(card, "#verdict").textContent = headingOf(cell, texts);
    find(card, ".meaning").textContent = cell.found ? verdict.meaning : texts.nothingFound;
    find(card, ".bars").hidden = find(card, ".looked").hidden = !cell.found;
    const shares = Object.entries(cell.probabilities).sort((a, b) => b[1] - a[1]);
    const rows = repeat(find(card, "tbody"), Object.keys(shares));
    for (const [index, [label, share]] of shares.entries()) {
      find(rows[index], "th").textContent = labelName(label, texts);
      find(rows[index], "rect", SVGElement).setAttribute("width", String(100 * share));
      find(rows[index], ".percent").textContent = percent(share);
    }
    showLabels(cell);
    find(card, ".by").textContent = texts.by.replace("{}", cell.image.version);
  };

  /** @param {Cell} cell */
  const showLabels = (cell) => {
    for (const button of repeat(find(labels, ".classes"), classesOf(collection.entries))) {
      find(button, ".name").textContent = labelName(button.dataset.key ?? "", texts);
    }
    for (const [index, button] of findAll(labels, "button").entries()) {
      find(button, "kbd").textContent = String(index + 1);
      button.setAttribute("aria-keyshortcuts", String(index + 1));
      button.setAttribute("aria-pressed", String(button.dataset.key === cell.own));
    }
  };

  /** @param {Upload} image */
  const showHeat = (image) => {
    heat.hidden = !image.heatMap;
    if (image.heatMap) heat.src = image.heatMap;
    showOpacity();
    find(card, ".looked label").hidden = !image.heatMap;
    explainButton.hidden = Boolean(image.heatMap);
    explainButton.disabled = image.explaining;
  };

  const showOpacity = () => { heat.style.opacity = String(Number(opacity.value) / 100); };

  explainButton.addEventListener("click", async () => {
    const image = imageOf();
    if (!image) return;
    image.explaining = true;
    showHeat(image);
    note.textContent = texts.asking;
    let message = "";
    try {
      image.heatMap = await explain(image.file, image.version);
    } catch (error) {
      message = error instanceof Problem ? problemOf(error.kind, texts).title : texts.noExplanation;
    }
    image.explaining = false;
    note.textContent = message;
    if (imageOf() !== image) return;
    showHeat(image);
    if (image.heatMap) opacity.focus();
  });

  /** @param {string | undefined | null} name */
  const label = (name) => {
    if (shown && isCell(shown)) collection.label([shown], () => name ?? null);
  };

  /** @param {KeyboardEvent} event */
  const onKey = (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.altKey || event.ctrlKey || event.metaKey || target.matches("input, select")) return;
    const button = findAll(labels, "button")[Number(event.key) - 1];
    if (event.key === "0") label(null);
    else if (button) label(button.dataset.key);
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
    if (button) label(button.getAttribute("aria-pressed") === "true" ? null : button.dataset.key);
  });
  return { show, onKey };
}

/** @param {Cell} cell @param {Texts} texts @returns {string} */
export function headingOf(cell, texts) {
  if (!cell.found) return texts.nothing;
  return `${labelName(cell.label ?? "OTHER", texts)}${cell.verdict === "uncertain" ? "?" : ""}`;
}
