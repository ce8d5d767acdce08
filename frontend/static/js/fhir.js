// The count as a FHIR R4 bundle: a preliminary DiagnosticReport, its Observations, the model as Device.

import { wilson } from "./count.js";
import { withBands } from "./fields.js";
import { fill, labelName } from "./texts.js";

/** @import { CountRecord } from "./record.js" */
/** @import { Texts } from "./texts.js" */

const LOINC = "http://loinc.org", UCUM = "http://unitsofmeasure.org", TERMS = "http://terminology.hl7.org/CodeSystem/";

// The codes of the share and of the absolute count, and the names that LOINC gives to both. Kinds
// without a code have their name only.
/** @type {Record<string, [string, string, string]>} */
const CODES = {
  NEUTROPHIL: ["26511-6", "26499-4", "Neutrophils"],
  LYMPHOCYTE: ["26478-8", "26474-7", "Lymphocytes"],
  MONOCYTE: ["26485-3", "26484-6", "Monocytes"],
  EOSINOPHIL: ["26450-7", "26449-9", "Eosinophils"],
  BASOPHIL: ["30180-4", "26444-0", "Basophils"],
};
const LEUKOCYTES = /** @type {const} */ (["26464-8", "Leukocytes [#/volume] in Blood"]);

/**
 * @param {CountRecord} record
 * @param {Texts} texts
 * @param {(share: number) => string} percent
 * @param {() => string} newId Returns a UUID.
 */
export function toFhir(record, texts, percent, newId) {
  const { report, summary, version, hash } = record;
  const date = record.date.toISOString();
  const common = {
    status: "preliminary",
    issued: date,
    ...(report.sample && { specimen: { identifier: { value: report.sample }, display: report.sample } }),
    ...(report.reviewer && { performer: [{ display: report.reviewer }] }),
  };
  const device = entry({
    resourceType: "Device",
    deviceName: [{ name: "bloodcells", type: "model-name" }],
    ...(version && { version: [{ value: version }, ...(hash ? [{ type: { text: "SHA-256" }, value: hash }] : [])] }),
    note: [{ text: texts.notForDiagnosis }],
  }, newId);
  /** @param {object} facts */
  const observation = (facts) => entry({
    resourceType: "Observation",
    ...common,
    category: [{ coding: [{ system: `${TERMS}observation-category`, code: "laboratory" }] }],
    ...facts,
  }, newId);
  const byModel = {
    method: { text: fill(record.adapted ? texts.adapted.by : texts.by, version) },
    device: { reference: device.fullUrl, display: `bloodcells ${version}` },
  };
  const shares = withBands(summary.rows).map(({ kind, count, bands }) => observation({
    ...byModel,
    code: concept(CODES[kind]?.[0], `${CODES[kind]?.[2]}/Leukocytes in Blood`, nameOf(kind, bands, texts)),
    ...(summary.counted
      ? { valueQuantity: quantity((100 * count) / summary.counted, 1, "%", "%") }
      : { dataAbsentReason: { coding: [{ system: `${TERMS}data-absent-reason`, code: "unknown" }] } }),
    note: [{ text: fill(texts.shareNote, count, summary.counted, ...wilson(count, summary.counted).map(percent)) }],
  }));
  const amounts = record.absolutes.map(({ kind, bands, value, range: [low, high] }) => observation({
    ...byModel,
    code: concept(CODES[kind]?.[1], `${CODES[kind]?.[2]} [#/volume] in Blood`, nameOf(kind, bands, texts)),
    valueQuantity: amount(value),
    ...((low !== null || high !== null) && {
      referenceRange: [{ ...(low !== null && { low: amount(low) }), ...(high !== null && { high: amount(high) }) }],
    }),
  }));
  // Not from the model: a person wrote it.
  const leukocytes = report.leukocytes === null ? [] : [observation({
    code: concept(...LEUKOCYTES, texts.leukocytes), valueQuantity: amount(report.leukocytes),
  })];
  const results = [...shares, ...leukocytes, ...amounts];
  const diagnostic = entry({
    resourceType: "DiagnosticReport",
    ...common,
    specimen: common.specimen && [common.specimen],
    category: [{ coding: [{ system: `${TERMS}v2-0074`, code: "HM", display: "Hematology" }] }],
    code: { text: texts.differential },
    ...(results.length && { result: results.map(({ fullUrl }) => ({ reference: fullUrl })) }),
    conclusion: `${texts.notForDiagnosis} ${fill(texts.coverage, summary.counted, summary.found, summary.confirmed)}`,
  }, newId);
  return { resourceType: "Bundle", type: "collection", timestamp: date, entry: [diagnostic, ...results, device] };
}

/** @param {string} kind @param {boolean} bands @param {Texts} texts */
const nameOf = (kind, bands, texts) => (bands ? texts.withBands : labelName(kind, texts));

/** @param {object} resource @param {() => string} newId */
const entry = (resource, newId) => ({ fullUrl: `urn:uuid:${newId()}`, resource });

/** @param {string | undefined} code @param {string} display @param {string} text */
const concept = (code, display, text) => (code ? { coding: [{ system: LOINC, code, display }], text } : { text });

/** @param {number} value @param {number} digits @param {string} unit @param {string} code */
const quantity = (value, digits, unit, code) => ({ value: Number(value.toFixed(digits)), unit, system: UCUM, code });

/** @param {number} value */
const amount = (value) => quantity(value, 9, "10^9/L", "10*9/L");
