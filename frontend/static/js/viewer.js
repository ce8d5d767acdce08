// One cell in large: its picture with the outlines, what the model said, where it looked, and a
// person's own label.

import { CLASSES } from "./collection.js";
import { nameOf } from "./gallery.js";
import { addressOf } from "./pictures.js";
import { explain } from "./service.js";

const KEYS = [...CLASSES, "OTHER"];
const SVG = "http://www.w3.org/2000/svg";

export function mountViewer(card, texts, percent, collection, onChoose) {
  const part = (selector) => card.querySelector(selector);
  const picture = part("img.picture"), heat = part(".heat"), outlines = part(".outlines");
  const opacity = part("input[type=range]"), note = part(".looked .hint");
  const rows = [...card.querySelectorAll("tbody tr")];
  let shown = null;

  const show = (entry) => {
    card.hidden = !entry;
    if (!entry) return;
    const moved = entry !== shown;
    shown = entry;
    const image = entry.image ?? entry;
    showPicture(image, entry);
    part("figcaption").textContent = part("figcaption").title = nameOf(entry, texts);
    part(".of-cell").hidden = part(".looked").hidden = Boolean(entry.cells);
    part("[data-do=retry-one]").hidden = !["failed", "cancelled"].includes(entry.state);
    card.className = `card result viewer ${entry.verdict ?? entry.state}`;
    if (entry.cells) showState(entry);
    else showAnswer(entry);
    if (moved) note.textContent = "";
    showHeat(image);
  };

  const showPicture = (image, entry) => {
    const address = addressOf(image);
    if (picture.dataset.of !== `${image.id}${address}`) {
      picture.dataset.of = `${image.id}${address}`;
      showPlaceholder(!address);
      if (address) picture.src = address;
    }
    outlines.replaceChildren(...image.cells.filter((cell) => cell.box).map((cell) => outline(cell, entry)));
    fitOutlines();
  };

  const showPlaceholder = (missing) => {
    part(".frame").hidden = missing;
    part(".placeholder-picture").hidden = !missing;
  };

  const fitOutlines = () => {
    const size = shown.image?.size ?? [picture.naturalWidth, picture.naturalHeight];
    if (size[0]) outlines.setAttribute("viewBox", `0 0 ${size.join(" ")}`);
  };

  const outline = (cell, entry) => {
    const [left, top, right, bottom] = cell.box;
    const rect = document.createElementNS(SVG, "rect");
    const sides = { x: left, y: top, width: right - left, height: bottom - top, rx: 6 };
    for (const [name, value] of Object.entries(sides)) rect.setAttribute(name, value);
    rect.classList.add(cell.verdict);
    if (cell === entry) rect.classList.add("chosen");
    rect.addEventListener("click", () => onChoose(cell));
    return rect;
  };

  const showState = (image) => {
    const problem = texts.problems[image.problem];
    const pending = texts[image.state === "asking" ? "asking" : "waiting"];
    part(".badge").textContent = problem || image.state === "cancelled" ? texts.notRead : texts.waiting;
    part("#verdict").textContent = problem?.title ?? (image.state === "cancelled" ? texts.cancelled : pending);
    part(".meaning").textContent = problem?.advice ?? "";
  };

  const showAnswer = (cell) => {
    const verdict = texts.verdicts[cell.verdict];
    part(".badge").textContent = verdict.badge;
    part("#verdict").textContent = headingOf(cell, texts);
    part(".meaning").textContent = cell.found ? verdict.meaning : texts.nothingFound;
    part(".bars").hidden = part(".looked").hidden = !cell.found;
    const shares = Object.entries(cell.probabilities).sort((a, b) => b[1] - a[1]);
    shares.forEach(([label, share], index) => {
      rows[index].querySelector("th").textContent = texts.cells[label];
      rows[index].querySelector("rect").setAttribute("width", 100 * share);
      rows[index].querySelector(".percent").textContent = percent(share);
    });
    for (const button of card.querySelectorAll("[data-label]")) {
      button.setAttribute("aria-pressed", button.dataset.label === cell.own);
    }
    part(".by").textContent = texts.by.replace("{}", cell.image.version);
  };

  const showHeat = (image) => {
    const ready = Boolean(image.heatMap);
    heat.hidden = !ready;
    if (ready) heat.src = image.heatMap;
    heat.style.opacity = opacity.value / 100;
    part(".looked label").hidden = !ready;
    part("[data-do=explain]").hidden = ready;
    part("[data-do=explain]").disabled = image.heatMap === undefined;
  };

  const look = async () => {
    const { image } = shown;
    image.heatMap = undefined;
    showHeat(image);
    note.textContent = texts.asking;
    try {
      image.heatMap = await explain(image.file, image.version, new AbortController().signal);
      note.textContent = "";
    } catch (error) {
      image.heatMap = null;
      note.textContent = texts.problems[error.kind]?.title ?? texts.noExplanation;
    }
    if (shown.image === image) showHeat(image);
    if (image.heatMap && shown.image === image) opacity.focus();
  };

  const label = (name) => collection.label([shown], () => name);

  const onKey = (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
    if (!shown || shown.cells) return;
    if (event.key === "0") label(null);
    else if (KEYS[event.key - 1]) label(KEYS[event.key - 1]);
  };

  picture.addEventListener("load", () => shown && fitOutlines());
  picture.addEventListener("error", () => showPlaceholder(true));
  opacity.addEventListener("input", () => { heat.style.opacity = opacity.value / 100; });
  part("[data-do=explain]").addEventListener("click", look);
  part("[data-do=retry-one]").addEventListener("click", () => collection.retry([shown]));
  for (const button of card.querySelectorAll("[data-label]")) {
    button.addEventListener("click", () => {
      label(shown.own === button.dataset.label ? null : button.dataset.label);
    });
  }
  return { show, onKey };
}

export function headingOf(cell, texts) {
  if (!cell.found) return texts.nothing;
  if (!cell.label) return texts.none;
  const name = texts.cells[cell.label];
  return cell.verdict === "confident" ? name : texts.perhaps.replace("{}", name);
}
