import assert from "node:assert/strict";
import { test } from "node:test";

import { toCsv, toTable } from "../../frontend/static/js/exports.js";

test("a value that a spreadsheet would run is text", () => {
  const signs = ["=1+1", "+a", "-a", "@SUM(A1)", "\uff1d1", "\uff0ba", "\uff0da", "\uff20a", "\ta", "\ra"];
  const hidden = [" =1", "\t=1", "\r\n=1", "\ufeff=1", "\u200b\uff1d1", "\u00a0+a"];
  for (const value of [...signs, ...hidden]) assert.equal(toCsv([[value]]), `"'${value}"\r\n`);
});

test("other values are unchanged, and quoted for every separator", () => {
  assert.equal(toCsv([[-2, "-2.5", 3, "a=1", ""]]), '-2,-2.5,3,"a=1",\r\n');
  assert.equal(toCsv([["a,b", "a;=1", "a\t=1", 'say "a"']]), '"a,b","a;=1","a\t=1","say ""a"""\r\n');
});

test("a row per cell, and one per image without a cell or an answer", () => {
  const image = { name: "a.png", version: "2.0" };
  const cell = {
    image, index: 0, box: [1, 2, 3.25, 4], label: "B", verdict: "confident", own: "A", found: true,
    probabilities: { A: 0.25, B: 0.75 },
  };
  const rejected = { ...cell, index: 1, label: null, verdict: "rejected", own: null };
  const smudge = { ...rejected, index: 2, own: "SMUDGE" };
  const uncertain = { ...cell, index: 3, verdict: "uncertain", own: null, adapted: true };
  const nothing = { ...rejected, index: 0, box: null, found: false };
  const failed = { name: "b.png", cells: [], state: "failed", problem: "CorruptImage" };
  const cells = [cell, rejected, smudge, uncertain, nothing, failed];
  assert.deepEqual(toTable(cells).split("\r\n"), [
    "file,cell,left,top,right,bottom,version,label,verdict,adapted,a,b,your_label,counted_as,problem",
    "a.png,1,1.0,2.0,3.3,4.0,2.0,B,confident,no,0.250000,0.750000,A,A,",
    "a.png,2,1.0,2.0,3.3,4.0,2.0,,rejected,no,0.250000,0.750000,,,",
    "a.png,3,1.0,2.0,3.3,4.0,2.0,,rejected,no,0.250000,0.750000,SMUDGE,,",
    "a.png,4,1.0,2.0,3.3,4.0,2.0,B,uncertain,yes,0.250000,0.750000,,,",
    "a.png,,,,,,,,,,,,,,NoCellFound",
    "b.png,,,,,,,,,,,,,,CorruptImage",
    "",
  ]);
});
