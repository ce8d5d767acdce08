// The page beyond its plain form: many images, a gallery, a count. Without it the form still works.

import { Collection } from "./collection.js";
import { mountDifferential } from "./differential.js";
import { saveLabelled, saveTable } from "./exports.js";
import { mountGallery } from "./gallery.js";
import { mountIntake } from "./intake.js";
import { headingOf, mountViewer } from "./viewer.js";

const collection = new Collection();
const view = { filter: "all", sort: "order", chosen: null };

const BETWEEN_DRAWINGS = 300;

// Bring the page to life; again after its texts were replaced by those of another language.
function mount() {
  const listening = new AbortController();
  const { signal } = listening;
  const find = (selector) => document.querySelector(selector);
  const texts = JSON.parse(find("#texts").textContent);
  const format = new Intl.NumberFormat(document.documentElement.lang, {
    style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1,
  });
  const percent = (share) => format.format(share);
  const form = find(".upload"), bench = find(".workbench");
  const announcement = find("#announcement"), note = find("#export-note");
  // What to say of files that were too many, for as long as those beside them are shown.
  let leftOut = "";
  const act = (name, action) => bench.querySelector(`[data-do=${name}]`).addEventListener("click", action);

  const take = (files) => {
    const limit = Number(form.dataset.maxImages);
    const room = Math.max(0, limit - collection.images.length);
    leftOut = files.length > room ? texts.tooMany.replace("{}", limit) : "";
    if (leftOut) announce(leftOut);
    const version = form.querySelector("#version")?.value ?? "";
    const first = collection.add(files.slice(0, room), version, Number(form.dataset.max));
    if (first && view.filter === "all") view.chosen = first.id;
    show();
  };
  const announce = (text) => { announcement.textContent = text; };

  const differential = mountDifferential(find(".differential"), percent);
  const gallery = mountGallery(find(".gallery"), find("#tile"), texts, percent, view, (chosen) => {
    show();
    // On a phone the viewer lies above the gallery.
    if (chosen && getComputedStyle(find(".bench")).display === "block") find(".viewer").scrollIntoView();
  });
  const viewer = mountViewer(find(".viewer"), texts, percent, collection, (cell) => {
    Object.assign(view, { chosen: cell.id, filter: "all" });
    show();
  });

  const showProgress = () => {
    const total = collection.images.length, done = total - collection.open.length;
    find(".workbench progress").value = total ? done / total : 0;
    const answered = texts.answered.replace("{}", done - collection.failed.length).replace("{}", total);
    find(".answered").textContent = leftOut ? `${answered}. ${leftOut}` : answered;
    find("[data-do=cancel]").hidden = done === total;
    find("[data-do=retry]").hidden = done < total || !collection.failed.length;
    find("[data-do=clear]").hidden = done < total;
  };

  const announceAnswers = () => {
    const [first, ...others] = collection.entries;
    if (others.length) announce(`${texts.allAnswered} ${find(".answered").textContent}`);
    else if (first?.cells) announce(texts.problems[first.problem]?.title ?? texts.cancelled);
    else if (first) announce(`${headingOf(first, texts)}. ${texts.verdicts[first.verdict].badge}. ${percent(first.confidence)}`);
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

  let asking = false, timer = null;
  const draw = () => {
    clearTimeout(timer);
    timer = null;
    show();
  };
  collection.addEventListener("change", () => {
    if (collection.open.length) {
      asking = true;
      // Answers come faster than a person reads: drawing each would take longer than the answers.
      timer ??= setTimeout(draw, BETWEEN_DRAWINGS);
      return;
    }
    draw();
    if (asking) announceAnswers();
    asking = false;
  }, { signal });

  act("cancel", () => collection.cancel());
  act("retry", () => collection.retry(collection.failed));
  act("clear", () => {
    Object.assign(view, { filter: "all", chosen: null });
    collection.clear();
    form.querySelector("input[type=file]").focus();
  });
  act("confirm", () => collection.label(gallery.confirmable(), (cell) => cell.label));
  act("csv", () => saveTable(collection.entries));
  act("print", () => window.print());
  act("zip", () => {
    const labelled = collection.entries.filter((entry) => entry.own);
    if (labelled.length) saveLabelled(labelled);
    else note.textContent = texts.noLabels;
  });
  bench.addEventListener("keydown", viewer.onKey);
  window.addEventListener("beforeprint", () => {
    const date = new Date().toLocaleString(document.documentElement.lang, { dateStyle: "long", timeStyle: "short" });
    find(".printed").textContent = texts.report.replace("{}", date);
  }, { signal });
  window.addEventListener("beforeunload", (event) => {
    if (collection.entries.some((entry) => entry.own)) event.preventDefault();
  }, { signal });

  for (const link of document.querySelectorAll("[data-language]")) {
    link.addEventListener("click", async (event) => {
      if (!collection.images.length) return;
      event.preventDefault();
      const version = form.querySelector("#version")?.value;
      try {
        await replaceTexts(link.href);
      } catch {
        announce(texts.problems.PageUnreachable.title);
        return;
      }
      listening.abort();
      mount();
      if (version) find("#version").value = version;
    });
  }
  mountIntake(form, document.querySelectorAll(".sample"), take, signal);
  show();
}

async function replaceTexts(address) {
  const page = new DOMParser().parseFromString(await (await fetch(address)).text(), "text/html");
  document.documentElement.lang = page.documentElement.lang;
  document.title = page.title;
  document.body.replaceWith(document.adoptNode(page.body));
}

mount();
