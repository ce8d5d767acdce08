// The report: what a person writes on it, absolute counts, and what only the printed page shows.

import { find, findAll, repeat } from "./dom.js";
import { absolutes, amountOf } from "./fields.js";
import { doubtful } from "./record.js";
import { fill, groupName, labelName } from "./texts.js";

/** @import { Collection } from "./collection.js" */
/** @import { Summary } from "./count.js" */
/** @import { Range, Report } from "./fields.js" */
/** @import { CountRecord } from "./record.js" */
/** @import { Texts } from "./texts.js" */

/**
 * Return functions that show the report of a count, store what is written on it, and prepare the
 * printed page.
 * @param {HTMLElement} bench
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 * @param {Collection} collection
 */
export function mountReport(bench, texts, percent, collection) {
  const { lang } = document.documentElement;
  const number = new Intl.NumberFormat(lang, { maximumFractionDigits: 2, useGrouping: false });
  const form = find(bench, ".report-form", HTMLFormElement), table = find(form, ".absolute");
  const head = find(bench, ".report-head");
  const sample = find(form, "#sample", HTMLInputElement);
  const reviewer = find(form, "#reviewer", HTMLInputElement);
  const leukocytes = find(form, "#leukocytes", HTMLInputElement);

  // As it was written: what is read again must not be rounded.
  const exact = new Intl.NumberFormat(lang, { maximumFractionDigits: 9, useGrouping: false });
  /** @param {number | null} value */
  const written = (value) => (value === null ? "" : exact.format(value));

  /** @type {Summary | undefined} */
  let counts;

  /** @param {Summary} summary */
  const show = (summary) => {
    const { report } = collection.count;
    counts = summary;
    put(sample, report.sample);
    put(reviewer, report.reviewer);
    put(leukocytes, written(report.leukocytes));
    showAbsolutes(report);
  };

  /** @param {Report} report */
  const showAbsolutes = (report) => {
    const rows = counts ? absolutes(counts, report) : [];
    table.hidden = !rows.length;
    for (const [at, row] of repeat(find(table, "tbody"), rows.map(({ kind }) => kind)).entries()) {
      const { kind, bands, value, range, flag } = rows[at];
      const name = bands ? texts.withBands : labelName(kind, texts);
      find(row, "th").textContent = name;
      find(row, ".amount").textContent = number.format(value);
      find(row, ".flag").textContent = flag && texts.flags[flag];
      for (const [end, field] of inputs(row).entries()) {
        put(field, written(range[end]));
        field.setAttribute("aria-label", `${name}, ${end ? texts.highest : texts.lowest}`);
      }
    }
  };

  /** @param {HTMLElement} row */
  const inputs = (row) => /** @type {HTMLInputElement[]} */ (findAll(row, "input"));

  // An answer that arrives must not replace what is being written.
  /** @type {HTMLInputElement | null} */
  let writing = null;
  /** @param {HTMLInputElement} field @param {string} value */
  const put = (field, value) => {
    if (field !== writing || field !== document.activeElement) field.value = value;
  };

  // What is not a number leaves the last one.
  /** @param {HTMLInputElement} field @param {number | null} stored */
  const read = (field, stored) => (field.validity.valid ? amountOf(field.value) : stored);

  /** Return the report as the fields have it. @returns {Report} */
  const draft = () => {
    const { ranges, leukocytes: stored } = collection.count.report;
    const edited = table.hidden ? [] : findAll(table, "[data-key]").map((row) => {
      const kind = row.dataset.key ?? "", [low, high] = inputs(row), range = ranges[kind] ?? [null, null];
      return /** @type {[string, Range]} */ ([kind, [read(low, range[0]), read(high, range[1])]]);
    }).filter(([kind, range]) => kind in ranges || range.some((end) => end !== null));
    return {
      sample: sample.value.trim(),
      reviewer: reviewer.value.trim(),
      leukocytes: read(leukocytes, stored),
      ranges: { ...ranges, ...Object.fromEntries(edited) },
    };
  };

  const commit = () => {
    if (!writing) return;
    collection.describe(draft());
    if (writing.validity.valid) writing = null;
  };

  /** @param {CountRecord} record */
  const print = (record) => {
    const { report, date, version, hash, target, summary } = record;
    const { counted, found, confirmed } = summary;
    /** @type {Record<string, string>} */
    const facts = {
      sample: report.sample, reviewer: report.reviewer, hash,
      version: record.adapted ? fill(texts.adapted.version, version) : version,
      date: date.toLocaleString(lang, { dateStyle: "long", timeStyle: "short" }),
      leukocytes: report.leukocytes === null ? "" : `${written(report.leukocytes)} × 10⁹/L`,
      target: fill(texts.target, counted, target),
      coverage: fill(texts.part, counted, found, found ? percent(counted / found) : "–"),
      confirmed: fill(texts.part, confirmed, counted, counted ? percent(confirmed / counted) : "–"),
    };
    for (const item of findAll(head, "[data-fact]")) {
      item.textContent = facts[item.dataset.fact ?? ""] || "–";
    }
    const cells = doubtful(record), list = find(bench, ".doubtful");
    list.hidden = !cells.length;
    for (const [at, row] of repeat(find(list, "tbody"), cells.map(({ cell }) => cell.id)).entries()) {
      const { image, cell } = cells[at], [file, place, suggestion] = findAll(row, "td");
      find(row, "th").textContent = String(at + 1);
      file.textContent = image.name;
      place.textContent = String(cell.number);
      suggestion.textContent = cell.label
        ? `${labelName(cell.label, texts)}? ${percent(cell.confidence)}` : groupName(cell.verdict, texts);
    }
    // Read by the margins of each page.
    document.documentElement.style.setProperty("--notice", JSON.stringify(texts.notForDiagnosis));
  };

  form.addEventListener("input", (event) => {
    writing = /** @type {HTMLInputElement} */ (event.target);
    // At once: if the table appeared with the click on a button below, it would move the button away.
    showAbsolutes(draft());
  });
  form.addEventListener("change", () => {
    writing?.reportValidity();
    commit();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  return { show, commit, print };
}
