import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { problemOf } from "../../frontend/static/js/texts.js";
import { predict } from "../../frontend/static/js/service.js";
import { Clock } from "./clock.mjs";

const { fetch } = globalThis;
const EXPIRED = () => Response.json({ type: "ExpiredForm" }, { status: 400 });
const file = () => new File(["image"], "a.png");
let field;
/** Tokens of the pages that were sent; only the last is valid. */
let issued;

beforeEach(() => {
  field = { value: "old" };
  issued = [];
  globalThis.document = { getElementsByName: () => [field] };
  globalThis.DOMParser = class {
    parseFromString = (text) => ({ getElementsByName: () => (text ? [{ value: text }] : []) });
  };
});
afterEach(() => { globalThis.fetch = fetch; });

/** A server whose sessions ended: it accepts the token of its newest page. */
const restarted = async (address, options) => {
  if (address === "/") {
    issued.push(`token ${issued.length}`);
    return new Response(issued.at(-1));
  }
  if (options.headers["X-CSRFToken"] !== issued.at(-1)) return EXPIRED();
  return Response.json({ version: "3.0", cells: [] });
};

test("requests in parallel renew an expired token once", async () => {
  globalThis.fetch = restarted;
  const answers = await Promise.all(Array.from({ length: 20 }, () => predict(file(), "")));
  assert.deepEqual([answers.length, issued, field.value], [20, ["token 0"], "token 0"]);
});

test("an answer that comes after another request's renewal does not renew again", async () => {
  let release;
  const held = new Promise((resolve) => { release = resolve; });
  let first = true;
  globalThis.fetch = async (...request) => {
    const isHeld = first;
    first = false;
    const response = await restarted(...request);
    if (isHeld) await held;
    return response;
  };
  const late = predict(file(), "");
  await predict(file(), "");
  release();
  await late;
  assert.equal(issued.length, 1);
  // The next expiry renews again.
  issued.push("restarted again");
  await predict(file(), "");
  assert.equal(issued.length, 3);
});

test("another tab may replace the new session", async () => {
  globalThis.fetch = async (address, options) => {
    const response = await restarted(address, options);
    if (issued.length === 1) issued.push("of the other tab");
    return response;
  };
  await predict(file(), "");
  assert.equal(issued.length, 3);
});

test("a token that is refused again and again is a problem", async () => {
  let pages = 0;
  globalThis.fetch = async (address) => (
    address === "/" ? new Response(`token ${pages++}`) : EXPIRED()
  );
  await assert.rejects(predict(file(), ""), { kind: "ExpiredForm" });
  assert.equal(pages, 2);
});

test("the renewal waits for a server that restarts", async () => {
  const clock = new Clock();
  let pages = 0;
  globalThis.fetch = async (address, options) => {
    if (address === "/" && pages++ < 3) return new Response("{}", { status: 502 });
    return restarted(address, options);
  };
  let answer;
  predict(file(), "", undefined, clock).then((found) => { answer = found; });
  await clock.run(() => 1, () => answer);
  assert.deepEqual([pages, issued.length], [4, 1]);
});

test("a server that stays away while the token is renewed is a problem", async () => {
  const clock = new Clock();
  globalThis.fetch = async (address) => (
    address === "/" ? new Response("{}", { status: 502 }) : EXPIRED()
  );
  let problem;
  predict(file(), "", undefined, clock).catch((error) => { problem = error; });
  await clock.run(() => 1, () => problem);
  assert.equal(problem.kind, "PageUnreachable");
});

test("a file that changed is not sent, and an answer that is not JSON is a problem", async () => {
  globalThis.fetch = () => assert.fail("sent");
  const moved = file();
  moved.slice = () => ({ arrayBuffer: () => Promise.reject(new Error("moved")) });
  await assert.rejects(predict(moved, ""), { kind: "CorruptImage" });
  globalThis.fetch = async () => new Response("<html>");
  await assert.rejects(predict(file(), ""), { kind: "ServiceError" });
});

test("a problem that only the edge knows is shown as an error of the service", () => {
  const texts = { problems: { ServiceError: { title: "our side" }, EmptyImage: { title: "empty" } } };
  assert.equal(problemOf("EmptyImage", texts).title, "empty");
  assert.equal(problemOf("EdgeError", texts).title, "our side");
});
