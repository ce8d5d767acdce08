// The page's own server: one request an image, sent again where that can help.

const ATTEMPTS = { ServiceBusy: 5, TooManyRequests: 4, ExpiredForm: 2 };
const LONGEST_PAUSE = 60;

export class Problem extends Error {
  constructor(kind) {
    super(kind);
    this.kind = kind;
  }
}

export const predict = (file, version, signal) => ask("/api/predictions", file, version, signal);

export const explain = async (file, version, signal) =>
  (await ask("/api/explanations", file, version, signal)).heat_map;

async function ask(address, file, version, signal) {
  for (let attempt = 1; ; attempt++) {
    const response = await send(address, file, version, signal);
    const answer = await read(response);
    if (response.ok && answer) return answer;
    const kind = answer?.type ?? "ServiceError";
    if (attempt >= (ATTEMPTS[kind] ?? 1)) throw new Problem(kind);
    // The server was started anew since this page was made.
    if (kind === "ExpiredForm") await renewToken(signal);
    else await pause(secondsToWait(kind, attempt, response), signal);
  }
}

async function send(address, file, version, signal) {
  const body = new FormData();
  body.set("image", file, file.name || "image");
  if (version) body.set("version", version);
  const headers = { "X-CSRFToken": tokens()[0].value };
  try {
    return await fetch(address, { method: "POST", body, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // A file that was moved or changed since it was chosen fails in the same way.
    throw new Problem((await readable(file)) ? "PageUnreachable" : "CorruptImage");
  }
}

const tokens = () => [...document.getElementsByName("csrf_token")];

const read = (response) => response.json().catch(() => null);

const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

async function renewToken(signal) {
  const page = new DOMParser().parseFromString(await (await fetch("/", { signal })).text(), "text/html");
  const fresh = page.getElementsByName("csrf_token")[0].value;
  for (const field of tokens()) field.value = fresh;
}

function secondsToWait(kind, attempt, response) {
  // The model's queue empties within a second; who asked for too much is told how long to wait.
  if (kind === "ServiceBusy") return 0.25 * 2 ** attempt * (0.5 + Math.random());
  return Math.min(Number(response.headers.get("Retry-After")) || 5, LONGEST_PAUSE);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
