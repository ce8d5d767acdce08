import assert from "node:assert/strict";
import { test } from "node:test";

import { fromProject, toProject } from "../../frontend/static/js/project.js";
import { zip } from "../../frontend/static/js/zip.js";

const upload = {
  id: "ab", name: "a.png", state: "done", problem: null, version: "3.0", found: [{ label: "MONOCYTE", verdict: "confident", probabilities: { MONOCYTE: 0.9 }, box: null, found: true }],
  size: null, heatMap: null, file: new File(["pixels"], "a.png", { type: "image/png" }),
};
const report = { sample: "S-1", reviewer: "Ana", leukocytes: 7.2, ranges: { BLAST: [null, 1] } };
const count = { id: "1", wanted: "", images: ["ab"], labels: { "ab-0": "BAND" }, report };

test("a project holds the count, the answers and the images", async () => {
  const opened = await fromProject(await toProject(count, [upload]));
  assert.deepEqual(opened.count, count);
  const [{ file, ...facts }] = opened.uploads;
  const { file: original, ...expected } = upload;
  assert.deepEqual(facts, expected);
  assert.deepEqual([file.name, file.type, await file.text()], ["a.png", "image/png", await original.text()]);
});

test("a count of an older page has no report; a wrong report is refused", async () => {
  const { id, wanted, images, labels } = count, older = { id, wanted, images, labels };
  assert.deepEqual((await fromProject(await toProject(older, []))).count, older);
  const wrong = { ...count, report: { ...report, leukocytes: "many" } };
  await assert.rejects(async () => fromProject(await toProject(wrong, [])), RangeError);
});

test("a project holds what was learned, and a damaged head is refused", async () => {
  const head = {
    on: true, classes: ["MONOCYTE"], weights: "AACAPwAAAMA=", weight: 0.25, confident: 0.9,
    labels: { "ab-0": "MONOCYTE" }, check: null,
  };
  const taught = { ...count, head };
  const known = { ...upload, found: [{ ...upload.found[0], embedding: "AACAPw==" }] };
  const opened = await fromProject(await toProject(taught, [known]));
  assert.deepEqual([opened.count, opened.uploads[0].found], [taught, known.found]);
  for (const wrong of [
    [{ ...count, head: { ...head, weights: "AACAP" } }, known],
    [taught, { ...upload, found: [{ ...upload.found[0], embedding: "x" }] }],
  ]) {
    await assert.rejects(async () => fromProject(await toProject(wrong[0], [wrong[1]])), RangeError);
  }
});

test("an archive that is no project, or lacks an image, is refused", async () => {
  const session = JSON.stringify({ format: 1, count, uploads: [{ id: "ab", name: "a.png" }] });
  for (const files of [[], [["session.json", new Blob(["{}"])]], [["session.json", new Blob([session])]]]) {
    await assert.rejects(async () => fromProject(await zip(files)), RangeError);
  }
});
