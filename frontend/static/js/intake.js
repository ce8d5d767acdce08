// How images come in: chosen, dropped (also as folders), pasted, photographed, or from the samples.

import { find, findAll } from "./dom.js";
import { fetchPatiently } from "./retry.js";

/**
 * Pass the visitor's files to `take`, until `signal` is aborted.
 * @param {HTMLFormElement} form
 * @param {HTMLElement[]} samples
 * @param {string[]} suffixes
 * @param {(files: File[]) => void} take
 * @param {AbortSignal} signal
 */
export function mountIntake(form, samples, suffixes, take, signal) {
  const zone = find(form, ".zone");
  for (const element of findAll(form, "input[type=file]")) {
    const field = /** @type {HTMLInputElement} */ (element);
    field.multiple = !field.hasAttribute("capture");
    field.addEventListener("change", () => {
      take([...(field.files ?? [])]);
      // So that the same file can be chosen again.
      field.value = "";
    });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["dragover", "dragleave", "drop"]) {
    // On the whole document: a file dropped beside the zone must not replace the page.
    document.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", name === "dragover");
    }, { signal });
  }
  document.addEventListener("drop", async (event) => {
    if (event.dataTransfer) take(await filesOf(event.dataTransfer, suffixes));
  }, { signal });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) take([...event.clipboardData.files]);
  }, { signal });
  for (const element of samples) {
    const button = /** @type {HTMLButtonElement} */ (element);
    button.addEventListener("click", async (event) => {
      event.preventDefault();
      const response = await fetchPatiently(button.dataset.address ?? "").catch(() => null);
      // The server then explains the error, as without the script.
      if (!response?.ok) return button.form?.requestSubmit(button);
      const bytes = await response.blob();
      take([new File([bytes], button.value, { type: bytes.type })]);
    });
  }
}

/** @param {DataTransfer} data @param {string[]} suffixes */
async function filesOf(data, suffixes) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.());
  const folders = entries.filter((entry) => entry?.isDirectory);
  // Of a folder, only the images.
  const nested = (await Promise.all(folders.map(filesIn))).flat()
    .filter((file) => suffixes.some((suffix) => file.name.toLowerCase().endsWith(suffix)));
  const names = new Set(folders.map((folder) => folder?.name));
  return [...[...data.files].filter((file) => !names.has(file.name)), ...nested];
}

/** @param {any} entry A FileSystemEntry. @returns {Promise<File[]>} */
async function filesIn(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  found.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  return (await Promise.all(found.map(filesIn))).flat();
}
