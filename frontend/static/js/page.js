// The script of the page: many images, a gallery, a count. The form also works without it.

import { Autosave } from "./autosave.js";
import { Collection, classesOf, isCell } from "./collection.js";
import { mountDifferential } from "./differential.js";
import { fetchPage, find, findAll } from "./dom.js";
import { download, save } from "./exports.js";
import { mountGallery } from "./gallery.js";
import { mountIntake } from "./intake.js";
import { fromProject, toProject } from "./project.js";
import { toRecord } from "./record.js";
import { mountReport } from "./report.js";
import { mountTeaching } from "./teaching.js";
import { fill, problemOf } from "./texts.js";
import { headingOf, mountViewer } from "./viewer.js";

/** @import { Cell } from "./collection.js" */
/** @import { View } from "./gallery.js" */

const collection = new Collection();
const autosave = new Autosave(collection);
/** @type {View} */
const view = {
  filter: "all", sort: "class", chosen: null, selected: new Set(), onlyConfirmed: false, target: "100",
};

const BETWEEN_DRAWINGS = 300;
const PROJECT = "cells.count.zip";

// Called again after a change of language replaced the body.
function mount() {
  const listening = new AbortController();
  const { signal } = listening;
  /** @param {string} selector */
  const part = (selector) => find(document, selector);
  const texts = JSON.parse(part("#texts").textContent ?? "");
  const shares = new Intl.NumberFormat(document.documentElement.lang, {
    style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1,
  });
  /** @param {number} share */
  const percent = (share) => shares.format(share);
  const form = find(document, ".upload", HTMLFormElement);
  const chooser = find(form, "#image", HTMLInputElement);
  const version = /** @type {HTMLSelectElement | null} */ (form.querySelector("#version"));
  const bench = part(".workbench"), announcement = part("#announcement"), note = part("#export-note");
  const toast = part(".toast"), onlyConfirmed = find(bench, "#only-confirmed", HTMLInputElement);
  const saved = find(bench, "#saved", HTMLInputElement);
  const target = find(bench, "#target", HTMLSelectElement);
  const format = find(bench, "#format", HTMLSelectElement);
  const hashes = JSON.parse(part("#hashes").textContent ?? "");
  const recipes = JSON.parse(part("#recipes").textContent ?? "");
  const suffixes = chooser.accept.split(",").filter((kind) => kind.startsWith("."));
  // Shown for as long as the images that were added with it.
  let notAdded = "";

  let adding = 0;
  const showBusy = () => bench.setAttribute("aria-busy", String(adding + collection.open.length > 0));
  /** @param {File[]} files */
  const take = async (files) => {
    adding++;
    showBusy();
    await add(files);
    adding--;
    show();
  };
  /** @param {File[]} files */
  const add = async (files) => {
    const [project] = files.filter(({ name }) => /\.zip$/i.test(name));
    if (project) return openProject(project);
    const most = { images: Number(form.dataset.maxImages), bytes: Number(form.dataset.max) };
    const { first, repeated, refused } = await collection.add(files, version?.value ?? "", most);
    notAdded = [
      refused ? fill(texts.tooMany, most.images) : "",
      repeated ? fill(texts.repeated, repeated) : "",
    ].filter(Boolean).join(" ");
    if (notAdded) announce(notAdded);
    if (first && view.filter === "all") choose(first);
  };
  /** @param {File} file */
  const openProject = async (file) => {
    try {
      const { count, uploads } = await fromProject(file);
      collection.restore(count, uploads);
      notAdded = "";
    } catch {
      announce(texts.notAProject);
      notAdded = texts.notAProject;
    }
  };
  /** @param {string} text */
  const announce = (text) => { announcement.textContent = text; };

  const teaching = mountTeaching(part(".teaching"), texts, percent, recipes, collection);
  const differential = mountDifferential(part(".differential"), texts, percent);
  const report = mountReport(bench, texts, percent, collection);
  /** @param {Map<string, number[]>} [sizes] */
  const record = (sizes) => {
    report.commit();
    return toRecord({
      report: collection.count.report, images: collection.images, sizes, hashes,
      onlyConfirmed: view.onlyConfirmed, target: Number(view.target), date: new Date(),
    });
  };
  const template = find(document, "#tile", HTMLTemplateElement);
  const gallery = mountGallery(part(".gallery"), template, texts, percent, view, (chosen) => {
    show();
    // On a phone the viewer lies above the gallery.
    if (chosen && getComputedStyle(part(".bench")).display === "block") part(".viewer").scrollIntoView();
  });
  /** @param {Cell} cell @param {(cell: Cell) => string | null} labelOf */
  const label = (cell, labelOf) => {
    const cells = gallery.selectedWith(cell);
    if (labelOf(cell)) gallery.chooseNext();
    collection.label(cells, labelOf);
  };
  /** @param {string} id */
  const choose = (id) => {
    Object.assign(view, { chosen: id, filter: "all", selected: new Set() });
    show();
  };
  const viewer = mountViewer(part(".viewer"), texts, percent, collection, choose, label);

  const showProgress = () => {
    const total = collection.uploads.length, done = total - collection.open.length;
    find(bench, "progress", HTMLProgressElement).value = total ? done / total : 0;
    const answered = fill(texts.answered, done - collection.failed.length, total);
    part(".answered").textContent = notAdded ? `${answered}. ${notAdded}` : answered;
    part("[data-do=cancel]").hidden = done === total;
    part("[data-do=retry]").hidden = done < total || !collection.failed.length;
    part("[data-do=clear]").hidden = done < total;
    find(bench, "[data-do=undo]", HTMLButtonElement).disabled = !collection.canUndo;
    find(bench, "[data-do=redo]", HTMLButtonElement).disabled = !collection.canRedo;
    if (version) {
      version.disabled = total > 0;
      if (collection.version) version.value = collection.version;
    }
  };

  const announceAnswers = () => {
    const [first, ...others] = collection.entries;
    if (others.length) announce(`${texts.allAnswered} ${part(".answered").textContent}`);
    else if (!first) return;
    else if (!isCell(first)) announce(first.problem ? problemOf(first.problem, texts).title : texts.cancelled);
    else announce(`${headingOf(first, texts)}. ${texts.verdicts[first.verdict].badge}. ${percent(first.confidence)}`);
  };

  // Where the keys work.
  const focusCells = () => {
    if (bench.classList.contains("single")) part(".viewer").focus({ preventScroll: true });
    else gallery.focus(true);
  };

  const show = () => {
    const { entries } = collection;
    document.body.classList.toggle("working", entries.length > 0);
    bench.hidden = !entries.length;
    showBusy();
    bench.classList.toggle("single", entries.length === 1);
    showProgress();
    const summary = differential(entries, view.onlyConfirmed);
    report.show(summary);
    teaching(entries);
    target.value = view.target;
    find(bench, ".target output", HTMLOutputElement).value = fill(texts.target, summary.counted, view.target);
    viewer.show(gallery.show(entries), classesOf(entries));
    note.textContent = "";
  };

  let asking = false, writing = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const draw = () => {
    clearTimeout(timer);
    timer = undefined;
    show();
  };
  collection.addEventListener("change", () => {
    const wrote = writing;
    writing = false;
    if (collection.open.length) {
      asking = true;
      // Drawing after each answer would take longer than the answers.
      timer ??= setTimeout(draw, BETWEEN_DRAWINGS);
      return;
    }
    draw();
    if (asking) {
      announceAnswers();
      if (document.activeElement === chooser) focusCells();
    }
    asking = false;
    const focused = document.activeElement;
    // A field is stored on the way to the next one, when nothing has the focus.
    if (!wrote && (!focused?.checkVisibility() || focused === document.body)) focusCells();
  }, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  collection.addEventListener("step", (event) => {
    const { name, size, how } = /** @type {CustomEvent} */ (event).detail;
    writing = name === "described" && how === "done";
    const text = fill(texts.steps[name], size);
    find(toast, "p").textContent = how === "done" ? text : fill(texts.steps[how], text);
    find(toast, "[data-do=undo]").hidden = how !== "done";
    // A single label, a field and the switch are seen, and undone, where they were set.
    const isSeen = ["added", "described", "adapted", "unadapted"].includes(name)
      || (name.endsWith("labelled") && size < 2);
    toast.hidden = how === "done" && isSeen;
  }, { signal });

  /** @type {Record<string, () => unknown>} */
  const actions = {
    cancel: () => collection.cancel(),
    retry: () => collection.retry(collection.failed),
    clear: () => {
      Object.assign(view, { filter: "all", chosen: null, selected: new Set() });
      collection.clear();
      chooser.focus();
    },
    undo: () => collection.undo(),
    redo: () => collection.redo(),
    dismiss: () => { toast.hidden = true; },
    accept: () => collection.label(gallery.acceptable(), (cell) => cell.label),
    project: async () => {
      report.commit();
      save(await toProject(collection.count, collection.uploads), PROJECT);
    },
    print: () => window.print(),
    export: async () => {
      note.textContent = await download(format.value, collection, record, texts, percent, suffixes);
    },
  };
  for (const button of findAll(document, "[data-do]")) {
    const action = actions[button.dataset.do ?? ""];
    if (!action) continue;
    button.addEventListener("click", async () => {
      try {
        await action();
      } catch {
        note.textContent = texts.notWritten;
      }
    });
  }
  target.addEventListener("change", () => {
    view.target = target.value;
    show();
  });
  onlyConfirmed.checked = view.onlyConfirmed;
  onlyConfirmed.addEventListener("change", () => {
    view.onlyConfirmed = onlyConfirmed.checked;
    show();
  });
  document.addEventListener("keydown", (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (target.matches("input:not([type=checkbox]), select, textarea")) return;
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && key === "z") actions[event.shiftKey ? "redo" : "undo"]();
    // Held down, a key would label a cell after the other.
    else if (event.altKey || event.ctrlKey || event.metaKey || event.repeat) return;
    else if (target !== part(".viewer") && !target.matches(".tile, .labels button")) return;
    else if ((key === " " && target.matches("button")) || !viewer.onKey(key)) return;
    event.preventDefault();
  }, { signal });
  window.addEventListener("beforeprint", () => report.print(record()), { signal });
  window.addEventListener("beforeunload", (event) => {
    report.commit();
    const { sample, reviewer, leukocytes } = collection.count.report;
    const isWritten = collection.uploads.length && (sample || reviewer || leukocytes !== null);
    if ((collection.labelled.length || isWritten) && autosave.state !== "saved") event.preventDefault();
  }, { signal });
  const showSaved = () => {
    saved.checked = autosave.isOn && autosave.isPossible;
    saved.disabled = !autosave.isPossible;
    part(".saved-state").textContent = texts.saved[autosave.state] ?? "";
    bench.dataset.saved = autosave.state;
  };
  saved.addEventListener("change", () => autosave.turn(saved.checked));
  autosave.addEventListener("change", showSaved, { signal });
  showSaved();

  for (const link of findAll(document, "[data-language]")) {
    link.addEventListener("click", async (event) => {
      if (!collection.uploads.length) return;
      event.preventDefault();
      try {
        const page = await fetchPage(/** @type {HTMLAnchorElement} */ (link).href);
        if (signal.aborted) return;
        report.commit();
        replaceBody(page);
      } catch {
        announce(texts.problems.PageUnreachable.title);
        return;
      }
      listening.abort();
      mount();
      find(document, "[data-language][aria-current]").focus();
    });
  }
  mountIntake(form, findAll(document, ".sample"), suffixes, take, signal);
  show();
}

/** @param {Document} page */
function replaceBody(page) {
  document.documentElement.lang = page.documentElement.lang;
  document.title = page.title;
  document.body.replaceWith(document.adoptNode(page.body));
}

mount();
autosave.start();
