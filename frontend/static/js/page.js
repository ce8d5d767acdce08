// The script of the page: many images, a gallery, a count. The form also works without it.

import { Collection, isCell } from "./collection.js";
import { mountDifferential } from "./differential.js";
import { fetchPage, find, findAll } from "./dom.js";
import { saveLabelled, saveTable } from "./exports.js";
import { mountGallery } from "./gallery.js";
import { mountIntake } from "./intake.js";
import { problemOf } from "./texts.js";
import { headingOf, mountViewer } from "./viewer.js";

const collection = new Collection();
/** @type {import("./gallery.js").View} */
const view = { filter: "all", sort: "order", chosen: null };

const BETWEEN_DRAWINGS = 300;

// Called again after a change of language replaced the body.
function mount() {
  const listening = new AbortController();
  const { signal } = listening;
  /** @param {string} selector */
  const part = (selector) => find(document, selector);
  const texts = JSON.parse(part("#texts").textContent ?? "");
  const format = new Intl.NumberFormat(document.documentElement.lang, {
    style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1,
  });
  /** @param {number} share */
  const percent = (share) => format.format(share);
  const form = find(document, ".upload", HTMLFormElement);
  const chooser = find(form, "#image", HTMLInputElement);
  const version = /** @type {HTMLSelectElement | null} */ (form.querySelector("#version"));
  const bench = part(".workbench"), announcement = part("#announcement"), note = part("#export-note");
  const suffixes = chooser.accept.split(",").filter((kind) => kind.startsWith("."));
  // Shown for as long as the images that were added with it.
  let leftOut = "";

  /** @param {File[]} files */
  const take = (files) => {
    const limit = Number(form.dataset.maxImages);
    const room = Math.max(0, limit - collection.images.length);
    leftOut = files.length > room ? texts.tooMany.replace("{}", limit) : "";
    if (leftOut) announce(leftOut);
    const first = collection.add(files.slice(0, room), version?.value ?? "", Number(form.dataset.max));
    if (first && view.filter === "all") view.chosen = first.id;
    show();
  };
  /** @param {string} text */
  const announce = (text) => { announcement.textContent = text; };

  const differential = mountDifferential(part(".differential"), texts, percent);
  const template = find(document, "#tile", HTMLTemplateElement);
  const gallery = mountGallery(part(".gallery"), template, texts, percent, view, (chosen) => {
    show();
    // On a phone the viewer lies above the gallery.
    if (chosen && getComputedStyle(part(".bench")).display === "block") part(".viewer").scrollIntoView();
  });
  const viewer = mountViewer(part(".viewer"), texts, percent, collection, (cell) => {
    Object.assign(view, { chosen: cell.id, filter: "all" });
    show();
  });

  const showProgress = () => {
    const total = collection.images.length, done = total - collection.open.length;
    find(bench, "progress", HTMLProgressElement).value = total ? done / total : 0;
    const answered = texts.answered.replace("{}", done - collection.failed.length).replace("{}", total);
    part(".answered").textContent = leftOut ? `${answered}. ${leftOut}` : answered;
    part("[data-do=cancel]").hidden = done === total;
    part("[data-do=retry]").hidden = done < total || !collection.failed.length;
    part("[data-do=clear]").hidden = done < total;
  };

  const announceAnswers = () => {
    const [first, ...others] = collection.entries;
    if (others.length) announce(`${texts.allAnswered} ${part(".answered").textContent}`);
    else if (!first) return;
    else if (!isCell(first)) announce(first.problem ? problemOf(first.problem, texts).title : texts.cancelled);
    else announce(`${headingOf(first, texts)}. ${texts.verdicts[first.verdict].badge}. ${percent(first.confidence)}`);
  };

  const show = () => {
    const { entries } = collection;
    document.body.classList.toggle("working", entries.length > 0);
    bench.hidden = !entries.length;
    bench.classList.toggle("single", entries.length === 1);
    showProgress();
    differential(entries);
    viewer.show(gallery.show(entries));
    note.textContent = "";
  };

  let asking = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const draw = () => {
    clearTimeout(timer);
    timer = undefined;
    show();
  };
  collection.addEventListener("change", () => {
    if (collection.open.length) {
      asking = true;
      // Drawing after each answer would take longer than the answers.
      timer ??= setTimeout(draw, BETWEEN_DRAWINGS);
      return;
    }
    draw();
    if (asking) announceAnswers();
    asking = false;
  }, { signal });

  /** @type {Record<string, () => void>} */
  const actions = {
    cancel: () => collection.cancel(),
    retry: () => collection.retry(collection.failed),
    clear: () => {
      Object.assign(view, { filter: "all", chosen: null });
      collection.clear();
      chooser.focus();
    },
    confirm: () => collection.label(gallery.confirmable(), (cell) => cell.label),
    csv: () => saveTable(collection.entries),
    print: () => window.print(),
    zip: () => {
      const { labelled } = collection;
      if (labelled.length) saveLabelled(labelled, suffixes);
      else note.textContent = texts.noLabels;
    },
  };
  for (const [name, action] of Object.entries(actions)) {
    find(bench, `[data-do=${name}]`).addEventListener("click", action);
  }
  bench.addEventListener("keydown", viewer.onKey);
  window.addEventListener("beforeprint", () => {
    const date = new Date().toLocaleString(document.documentElement.lang, { dateStyle: "long", timeStyle: "short" });
    part(".printed").textContent = texts.report.replace("{}", date);
  }, { signal });
  window.addEventListener("beforeunload", (event) => {
    if (collection.labelled.length) event.preventDefault();
  }, { signal });

  for (const link of findAll(document, "[data-language]")) {
    link.addEventListener("click", async (event) => {
      if (!collection.images.length) return;
      event.preventDefault();
      try {
        await replaceBody(/** @type {HTMLAnchorElement} */ (link).href);
      } catch {
        announce(texts.problems.PageUnreachable.title);
        return;
      }
      listening.abort();
      mount();
      const choice = document.querySelector("#version");
      if (choice instanceof HTMLSelectElement && version) choice.value = version.value;
    });
  }
  mountIntake(form, findAll(document, ".sample"), suffixes, take, signal);
  show();
}

/** @param {string} address */
async function replaceBody(address) {
  const page = await fetchPage(address);
  document.documentElement.lang = page.documentElement.lang;
  document.title = page.title;
  document.body.replaceWith(document.adoptNode(page.body));
}

mount();
