// How images come in: chosen, dropped (also whole folders), pasted, photographed, or from the samples.

const IMAGE = /\.(jpe?g|png|bmp|tiff?|webp)$/i;

// `take` gets a list of files; `signal` ends listening.
export function mountIntake(form, samples, take, signal) {
  const zone = form.querySelector(".zone");
  for (const field of form.querySelectorAll("input[type=file]")) {
    field.multiple = !field.hasAttribute("capture");
    field.addEventListener("change", () => {
      take([...field.files]);
      // So that the same file can be chosen again.
      field.value = "";
    });
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["dragover", "dragleave", "drop"]) {
    // Anywhere on the page: a file dropped beside the zone must not replace the page.
    document.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", name === "dragover");
    }, { signal });
  }
  document.addEventListener("drop", async (event) => take(await filesOf(event.dataTransfer)), { signal });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) take([...event.clipboardData.files]);
  }, { signal });
  for (const button of samples) {
    button.addEventListener("click", async (event) => {
      event.preventDefault();
      const bytes = await (await fetch(button.dataset.address)).blob();
      take([new File([bytes], button.value, { type: bytes.type })]);
    });
  }
}

async function filesOf(data) {
  const folders = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);
  // What a folder holds beside images is nobody's wish.
  const nested = (await Promise.all(folders.map(filesIn))).flat().filter((file) => IMAGE.test(file.name));
  const names = new Set(folders.map((folder) => folder.name));
  return [...[...data.files].filter((file) => !names.has(file.name)), ...nested];
}

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
