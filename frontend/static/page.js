// What the page does beyond its plain form: a preview, drag and drop, a sign that it is sending,
// and a result that stays when the language changes. Without this file everything still works.

const form = document.querySelector(".upload");

document.documentElement.classList.add("script");

if (form) {
  const { chosen, large, max, sending } = form.dataset;
  const input = form.querySelector("input[type=file]");
  const button = form.querySelector("button");
  const spinner = form.querySelector(".spinner-border");
  const zone = form.querySelector(".zone");
  const icon = form.querySelector(".zone-icon");
  const preview = form.querySelector(".preview");
  const status = form.querySelector(".status");

  const showPicture = (shown) => {
    preview.hidden = !shown;
    icon.toggleAttribute("hidden", shown);
  };

  const showChoice = () => {
    const file = input.files[0];
    const tooLarge = Boolean(file) && file.size > Number(max);
    URL.revokeObjectURL(preview.src);
    showPicture(false);
    if (file) preview.src = URL.createObjectURL(file);
    else preview.removeAttribute("src");
    input.setCustomValidity(tooLarge ? large : "");
    status.classList.toggle("bad", tooLarge);
    if (tooLarge) status.textContent = large;
    else status.textContent = file ? chosen.replace("{}", file.name) : "";
  };

  const showSending = (busy) => {
    button.disabled = busy;
    spinner.hidden = !busy;
    if (busy) status.textContent = sending;
  };

  preview.addEventListener("load", () => showPicture(true));
  preview.addEventListener("error", () => showPicture(false));
  input.addEventListener("change", showChoice);
  // The page says it already; the browser's own bubble would lie over that.
  input.addEventListener("invalid", (event) => {
    if (!input.validity.customError) return;
    event.preventDefault();
    input.focus();
  });
  form.addEventListener("submit", () => showSending(true));
  // The browser's Back may bring the page as it was left: sending.
  window.addEventListener("pageshow", () => {
    showSending(false);
    showChoice();
  });

  for (const name of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", name === "dragover");
    });
  }
  // A file dropped beside the zone must not replace the page.
  for (const name of ["dragover", "drop"]) {
    document.addEventListener(name, (event) => event.preventDefault());
  }
  zone.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    const first = new DataTransfer();
    first.items.add(event.dataTransfer.files[0]);
    input.files = first.files;
    showChoice();
  });

  // A result is not stored, so another language means asking again with the picture on the page.
  const picture = document.querySelector("[data-original]");
  const askAgain = async (event) => {
    event.preventDefault();
    const link = event.currentTarget;
    try {
      await fetch(link.href);
      const bytes = Uint8Array.from(atob(picture.src.split(",")[1]), (c) => c.charCodeAt(0));
      const again = new DataTransfer();
      again.items.add(new File([bytes], picture.dataset.original));
      input.files = again.files;
      form.requestSubmit();
    } catch {
      window.location.assign(link.href);
    }
  };
  if (picture) {
    for (const link of document.querySelectorAll("[data-language]")) {
      link.addEventListener("click", askAgain);
    }
  }
}
