// Answers adapted to the visitor's labels: which cells are learned from, training, and the new answers.

import { isPacked, pack, unpack } from "./embedding.js";
import { blend, train } from "./head.js";

/** @import { Cell } from "./collection.js" */
/** @import { AnsweredCell } from "./service.js" */
/**
 * @typedef {object} Recipe Of a version: see training/few_cells.py.
 * @property {number} C
 * @property {number} weight
 * @property {number} confident The probability from which an answer has high confidence.
 *
 * @typedef {object} Head What was learned. It is part of the count.
 * @property {boolean} on Whether it answers.
 * @property {string[]} classes The classes that it knows.
 * @property {string} weights Packed: for each class a number for each feature, and an intercept.
 * @property {number} weight
 * @property {number} confident
 * @property {Readonly<Record<string, string>>} labels What it was taught, by the id of the cell.
 * @property {Check | null} check Null if all labelled cells are of one image.
 *
 * @typedef {object} Check How many labelled cells are answered as they are labelled. Those of an image
 *   are answered by a head that did not learn from this image.
 * @property {number} cells
 * @property {number} adapted
 * @property {number} model
 */

export const LEAST_LABELS = 5, LEAST_CLASSES = 2;
const FOLDS = 10;

/**
 * Return the labelled cells, those to learn from, how many there are of each class, and the classes
 * with enough.
 * @param {Cell[]} cells
 * @param {string[]} classes Of the version.
 */
export function lessonsOf(cells, classes) {
  const labelled = cells.filter(({ own, embedding }) => own && embedding && classes.includes(own));
  const counts = new Map(classes.map((name) => [name, 0]));
  for (const { own } of labelled) counts.set(own ?? "", (counts.get(own ?? "") ?? 0) + 1);
  const known = classes.filter((name) => (counts.get(name) ?? 0) >= LEAST_LABELS);
  const learned = labelled.filter(({ own }) => known.includes(own ?? ""));
  return { labelled, learned, counts, known, isEnough: known.length >= LEAST_CLASSES };
}

/** @typedef {ReturnType<typeof lessonsOf>} Lessons */

/**
 * Train a head.
 * @param {Lessons} lessons
 * @param {Recipe} recipe
 * @returns {Head}
 */
export function teach({ labelled, learned, known }, { C, weight, confident }) {
  /** @param {Cell[]} cells */
  const learn = (cells) => {
    const classes = known.filter((name) => cells.some(({ own }) => own === name));
    const labels = cells.map(({ own }) => classes.indexOf(own ?? ""));
    const weights = train(cells.map(embeddingOf), labels, classes.length, C);
    return { classes, weights: pack(weights), weight, confident };
  };
  return {
    ...learn(learned),
    on: true,
    labels: Object.fromEntries(labelled.map(({ id, own }) => [id, own ?? ""])),
    check: check(labelled, learned, learn),
  };
}

/**
 * @param {Cell[]} labelled
 * @param {Cell[]} learned
 * @param {(cells: Cell[]) => Answering} learn
 * @returns {Check | null}
 */
function check(labelled, learned, learn) {
  const images = [...new Set(labelled.map(({ image }) => image.id))];
  if (images.length < 2) return null;
  /** @param {Cell} cell */
  const foldOf = ({ image }) => images.indexOf(image.id) % FOLDS;
  let adapted = 0;
  for (let fold = 0; fold < Math.min(FOLDS, images.length); fold++) {
    const others = learned.filter((cell) => foldOf(cell) !== fold);
    const head = others.length ? learn(others) : null;
    for (const cell of labelled.filter((each) => foldOf(each) === fold)) {
      adapted += Number((head ? answer(cell, head) : cell).label === cell.own);
    }
  }
  const model = labelled.filter(({ own, label }) => own === label).length;
  return { cells: labelled.length, adapted, model };
}

/** Return whether a head was taught these labels. @param {Head} head @param {Lessons} lessons */
export const isCurrent = ({ labels }, { labelled }) =>
  Object.keys(labels).length === labelled.length && labelled.every(({ id, own }) => labels[id] === own);

/** @typedef {Pick<Head, "classes" | "weights" | "weight" | "confident">} Answering */

/** @type {WeakMap<AnsweredCell, { weights: string, answer: AnsweredCell }>} */
const answers = new WeakMap();

/**
 * Return a cell as a head answers it. A cell that the network rejects stays rejected: the head
 * learns to distinguish the classes, not what is none of them.
 * @param {AnsweredCell} cell
 * @param {Head} head
 */
export function adapt(cell, head) {
  const known = answers.get(cell);
  if (known?.weights === head.weights) return known.answer;
  const adapted = answer(cell, head);
  answers.set(cell, { weights: head.weights, answer: adapted });
  return adapted;
}

/** @param {AnsweredCell} cell @param {Answering} head @returns {AnsweredCell} */
function answer(cell, { classes, weights, weight, confident }) {
  if (!cell.embedding || cell.verdict === "rejected") return cell;
  // An opened count may have a head of another network.
  if (unpack(weights).length !== classes.length * (embeddingOf(cell).length + 1)) return cell;
  const probabilities = blend(unpack(weights), classes, weight, embeddingOf(cell), cell.probabilities);
  const [label, top] = Object.entries(probabilities).reduce((a, b) => (b[1] > a[1] ? b : a));
  // The network's own answer, of which the head knows nothing.
  if (label === cell.label && !classes.includes(label)) return cell;
  const verdict = top >= confident ? "confident" : "uncertain";
  return { ...cell, label, verdict, probabilities, adapted: true };
}

/** @param {AnsweredCell} cell */
const embeddingOf = ({ embedding }) => unpack(embedding ?? "");

/** Return whether a value of a saved count is a head. @param {any} head */
export const isHead = ({ on, classes, weights, weight, confident, labels, check }) =>
  typeof on === "boolean" && Array.isArray(classes) && classes.length > 0 && isPacked(weights) && [weight, confident].every(Number.isFinite)
  && [...classes, ...Object.values(labels)].every((each) => typeof each === "string")
  && (check === null || [check.cells, check.adapted, check.model].every(Number.isInteger));
