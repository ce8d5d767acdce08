// The kinds of cells: the classes of the version, and more that only people label.

// Labels beyond the classes of a version, their keys, and whether such a cell counts as a leukocyte.
const EXTRA = /** @type {const} */ ([
  ["BASOPHIL", "h", true],
  ["BAND", "b", true],
  ["IMMATURE_GRANULOCYTE", "i", true],
  ["BLAST", "l", true],
  ["ATYPICAL_LYMPHOCYTE", "a", true],
  ["ERYTHROBLAST", "e", false],
  ["SMUDGE", "s", false],
  ["PLATELET", "p", false],
  ["ARTEFACT", "r", false],
  ["OTHER", "o", false],
]);

// Reported for each 100 leukocytes.
export const PER_HUNDRED = "ERYTHROBLAST";

/** @type {Set<string>} */
const OUTSIDE = new Set(EXTRA.filter(([, , counts]) => !counts).map(([kind]) => kind));

/** Return whether cells of a kind are part of the total. @param {string} kind */
export const isCounted = (kind) => !OUTSIDE.has(kind);

/**
 * Return the kinds beyond the classes of a version, by their keys.
 * @param {string[]} classes
 * @returns {Map<string, string>}
 */
const othersOf = (classes) => new Map(
  EXTRA.flatMap(([kind, key]) => (classes.includes(kind) ? [] : [[key, kind]])),
);

/**
 * Return all kinds: the classes of a version, and others.
 * @param {string[]} classes
 */
export const kindsOf = (classes) => [...classes, ...othersOf(classes).values()];

/**
 * Return all kinds by their keys: a digit for each class, a letter for each other.
 * @param {string[]} classes
 * @returns {Map<string, string>}
 */
export const keysOf = (classes) => new Map([
  ...classes.map((kind, at) => /** @type {[string, string]} */ ([String(at + 1), kind])),
  ...othersOf(classes),
]);
