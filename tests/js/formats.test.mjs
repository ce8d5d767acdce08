import assert from "node:assert/strict";
import { test } from "node:test";

import { toCoco } from "../../frontend/static/js/coco.js";
import { toFhir } from "../../frontend/static/js/fhir.js";
import { BLANK } from "../../frontend/static/js/fields.js";
import { folderOf } from "../../frontend/static/js/folders.js";
import { toLabelStudio } from "../../frontend/static/js/labelstudio.js";
import { boxClasses } from "../../frontend/static/js/record.js";
import { toYolo } from "../../frontend/static/js/yolo.js";
import { CELLS, IMAGES, recorded } from "./counted.mjs";

// tests/test_exports.py reads what the page downloads with the library of each format.

test("COCO: a box for each cell that has one, as left, top, width, height", () => {
  const { images, annotations, categories } = toCoco(recorded());
  // The other image has no answer.
  assert.deepEqual(images, [{ id: 1, file_name: "a.png", width: 100, height: 200 }]);
  assert.deepEqual(annotations[0].bbox, [10, 20, 20, 40]);
  assert.equal(annotations[0].area, 800);
  const nameOf = (id) => categories.find((category) => category.id === id).name;
  assert.deepEqual(annotations.map(({ category_id }) => nameOf(category_id)), ["NEUTROPHIL", "BAND", "UNDECIDED", "SMUDGE"]);
  assert.deepEqual(annotations.map(({ attributes }) => attributes.confirmed), [false, true, false, true]);
  assert.deepEqual(annotations.map(({ attributes }) => attributes.adapted), [false, false, false, false]);
});

test("an image without cells is there, one of unknown size is not", () => {
  const images = (sizes) => toCoco(recorded({ sizes, images: [{ ...IMAGES[0], cells: [{ ...IMAGES[0].cells[3], own: null, found: false }] }] })).images;
  assert.equal(images(new Map([["a", [100, 200]]])).length, 1);
  assert.equal(images(new Map()).length, 0);
});

test("YOLO: the class, and the middle and the size of the box as shares of the image", () => {
  const files = new Map(toYolo(recorded()));
  assert.deepEqual([...files.keys()], ["data.yaml", "classes.txt", "labels/a.txt"]);
  const names = files.get("classes.txt").trim().split("\n");
  const lines = files.get("labels/a.txt").trim().split("\n").map((line) => line.split(" "));
  assert.deepEqual(lines.map(([at]) => names[at]), ["NEUTROPHIL", "BAND", "UNDECIDED", "SMUDGE"]);
  assert.deepEqual(lines[0].slice(1), ["0.200000", "0.200000", "0.200000", "0.200000"]);
});

test("YOLO: each image has a file, and no name leads out of the folder", () => {
  const names = ["a.png", "A.jpg", "../../a.png", "a", ".png"];
  const images = names.map((name, at) => ({ ...IMAGES[0], id: String(at), name, size: [100, 200] }));
  const labels = toYolo(recorded({ images })).slice(2).map(([path]) => path);
  assert.deepEqual(labels, ["labels/a.txt", "labels/A-2.txt", "labels/__.._a.txt", "labels/a-3.txt", "labels/image.txt"]);
});

test("Label Studio: the model's boxes are predictions, the visitor's are annotations", () => {
  const [task, ...others] = toLabelStudio(recorded());
  assert.deepEqual([task.data.image, others], ["a.png", []]);
  const labels = ({ result }) => result.map(({ value }) => value.rectanglelabels[0]);
  assert.deepEqual(labels(task.predictions[0]), ["NEUTROPHIL", "NEUTROPHIL", "MONOCYTE", "UNDECIDED"]);
  assert.deepEqual(labels(task.annotations[0]), ["BAND", "SMUDGE"]);
  const { x, y, width, height } = task.predictions[0].result[0].value;
  assert.deepEqual([x, y, width, height], [10, 10, 20, 20]);
  assert.equal(task.predictions[0].model_version, "3.0");
  const [adapted] = toLabelStudio(recorded({ images: [{ ...IMAGES[0], cells: [{ ...IMAGES[0].cells[0], adapted: true }] }] }));
  assert.equal(adapted.predictions[0].model_version, "3.0, adapted");
});

const TEXTS = {
  cells: {}, by: "by {}", adapted: { by: "by {}, adapted" }, coverage: "{} of {}, {}", differential: "Count", leukocytes: "Leukocytes",
  notForDiagnosis: "Not for diagnosis.", shareNote: "{} of {}, {} to {}", withBands: "With bands",
};

/** Return the resources of a bundle by the text of their code. */
function bundle(facts) {
  let ids = 0;
  const { entry } = toFhir(recorded(facts), TEXTS, (share) => share.toFixed(3), () => String(++ids));
  const resources = entry.map(({ resource }) => resource);
  return { entry, resources, named: (text) => resources.filter(({ code }) => code?.text === text) };
}

test("FHIR: a preliminary report of shares and absolute counts, by LOINC", () => {
  const { entry, resources, named } = bundle();
  const [report] = named("Count");
  assert.deepEqual([report.status, report.issued], ["preliminary", "2026-01-02T03:04:05.000Z"]);
  assert.deepEqual(report.result.map(({ reference }) => reference), entry.slice(1, -1).map(({ fullUrl }) => fullUrl));
  const [share, absolute] = named("With bands");
  assert.deepEqual([share.code.coding[0].code, share.valueQuantity.value], ["26511-6", 66.7]);
  assert.equal(share.note[0].text, "2 of 3, 0.208 to 0.939");
  assert.deepEqual([absolute.code.coding[0].code, absolute.valueQuantity.value], ["26499-4", 4]);
  assert.deepEqual([absolute.referenceRange[0].low.value, absolute.referenceRange[0].high.value], [2, 7]);
  const [band] = named("BAND");
  assert.equal(band.code.coding, undefined);
  assert.equal(band.device.reference, entry.at(-1).fullUrl);
  assert.deepEqual(resources.at(-1).version.map(({ value }) => value), ["3.0", "1ebc"]);
  assert.equal(share.code.coding[0].display, "Neutrophils/Leukocytes in Blood");
  assert.equal(share.performer[0].display, "Ana");
  assert.equal(share.method.text, "by 3.0, adapted");
  // A person wrote them.
  assert.equal(named("Leukocytes")[0].device, undefined);
});

test("FHIR: nothing is empty where no image was answered", () => {
  const { resources } = bundle({ images: IMAGES.slice(1), report: BLANK });
  const [report, device] = resources;
  assert.deepEqual([report.resourceType, device.resourceType], ["DiagnosticReport", "Device"]);
  assert.deepEqual([report.result, device.version], [undefined, undefined]);
});

test("a label that the version does not know has a class of its own", () => {
  const images = [{ ...IMAGES[0], cells: [{ ...CELLS[0], own: "../CELL" }] }];
  assert.equal(boxClasses(recorded({ images })).at(-1), "../CELL");
  assert.ok(toCoco(recorded({ images })).annotations.every((each) => each.category_id > 0));
  assert.equal(folderOf(images[0].cells[0]), "OTHER/_cell");
  assert.equal(folderOf(CELLS[1]), "OTHER/band");
});

test("FHIR: what nobody wrote or counted is absent", () => {
  const { resources, named } = bundle({ report: { ...recorded().report, sample: "", reviewer: "", leukocytes: null }, onlyConfirmed: true, images: [{ ...IMAGES[0], cells: IMAGES[0].cells.slice(0, 1) }] });
  const [report] = named("Count");
  assert.deepEqual([report.specimen, report.performer], [undefined, undefined]);
  const [share] = named("NEUTROPHIL");
  assert.deepEqual([share.valueQuantity, share.dataAbsentReason.coding[0].code], [undefined, "unknown"]);
  assert.equal(share.method.text, "by 3.0");
  assert.equal(resources.length, 4);
});
