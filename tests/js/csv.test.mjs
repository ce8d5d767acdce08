import assert from "node:assert/strict";
import { test } from "node:test";

import { toCsv, toTable } from "../../frontend/static/js/csv.js";
import { recorded } from "./counted.mjs";

const PORTUGUESE = { separator: ";", decimal: "," };

test("a value that a spreadsheet would run is text", () => {
  const signs = ["=1+1", "+a", "-a", "@SUM(A1)", "\uff1d1", "\uff0ba", "\uff0da", "\uff20a", "\ta", "\ra"];
  const hidden = [" =1", "\t=1", "\r\n=1", "\ufeff=1", "\u200b\uff1d1", "\u00a0+a"];
  for (const value of [...signs, ...hidden]) {
    assert.equal(toCsv([[value]]), `"'${value}"\r\n`);
    assert.equal(toCsv([[value]], PORTUGUESE), `"'${value}"\r\n`);
  }
});

test("other values are unchanged, and quoted for every separator", () => {
  assert.equal(toCsv([[-2, "-2.5", 3, "a=1", ""]]), '-2,-2.5,3,"a=1",\r\n');
  assert.equal(toCsv([["a,b", "a;=1", "a\t=1", 'say "a"']]), '"a,b","a;=1","a\t=1","say ""a"""\r\n');
  assert.equal(toCsv([["2,5"]]), '"2,5"\r\n');
  assert.equal(toCsv([["2,5", "-2,5", "a;b"]], PORTUGUESE), '2,5;-2,5;"a;b"\r\n');
});

test("a row per cell, and one per image without a cell or an answer", () => {
  assert.deepEqual(toTable(recorded(), "en").split("\r\n"), [
    "file,cell,left,top,right,bottom,version,label,verdict,adapted,neutrophil,monocyte,your_label,final_class,counted_as,problem",
    "a.png,1,10.0,20.0,30.0,60.0,3.0,NEUTROPHIL,confident,no,0.750000,0.250000,,NEUTROPHIL,NEUTROPHIL,",
    "a.png,2,10.0,20.0,30.0,60.0,3.0,NEUTROPHIL,confident,no,0.750000,0.250000,BAND,BAND,BAND,",
    "a.png,3,10.0,20.0,30.0,60.0,3.0,MONOCYTE,uncertain,no,0.750000,0.250000,,,,",
    "a.png,4,10.0,20.0,30.0,60.0,3.0,,rejected,no,0.750000,0.250000,SMUDGE,SMUDGE,,",
    "a.png,5,,,,,3.0,MONOCYTE,confident,yes,0.750000,0.250000,,MONOCYTE,MONOCYTE,",
    "b.png,,,,,,,,,,,,,,,CorruptImage",
    "",
  ]);
});

test("in Portuguese the separator is a semicolon, and the decimal sign a comma", () => {
  const [columns, row] = toTable(recorded(), "pt-BR").split("\r\n");
  assert.ok(columns.startsWith("file;cell;left"));
  assert.equal(row, "a.png;1;10,0;20,0;30,0;60,0;3.0;NEUTROPHIL;confident;no;0,750000;0,250000;;NEUTROPHIL;NEUTROPHIL;");
});
