// A linear head on embeddings: multinomial logistic regression, as training/few_cells.py trains it.

import { minimize } from "./lbfgs.js";

// For each cell that it learns from.
const TOLERANCE = 1e-7;
// Added to the network's probabilities: the head can always overrule them.
const LEAST = 1e-4;

/**
 * Return the weights of a head: for each class a number for each feature, and an intercept. They
 * minimise the cross-entropies of all cells plus |W|² / (2 C), for embeddings less their mean,
 * divided by the mean deviation of the features.
 * @param {Float32Array[]} embeddings
 * @param {number[]} labels The class of each.
 * @param {number} classes How many there are.
 * @param {number} C
 */
export function train(embeddings, labels, classes, C) {
  const size = embeddings[0].length, row = size + 1;
  const { inputs, mean, scale } = standardized(embeddings);
  const scores = new Float64Array(classes);
  const weights = minimize((at, gradient) => {
    let loss = 0;
    for (let i = 0; i < at.length; i++) {
      const isIntercept = i % row === size;
      gradient[i] = isIntercept ? 0 : at[i] / C;
      if (!isIntercept) loss += at[i] ** 2 / (2 * C);
    }
    for (const [index, input] of inputs.entries()) {
      score(at, input, scores);
      const total = logSum(scores);
      loss += total - scores[labels[index]];
      for (let k = 0; k < classes; k++) {
        const error = Math.exp(scores[k] - total) - Number(k === labels[index]), start = k * row;
        for (let j = 0; j < size; j++) gradient[start + j] += error * input[j];
        gradient[start + size] += error;
      }
    }
    return loss;
  }, new Float64Array(classes * row), TOLERANCE * embeddings.length);
  return unstandardized(weights, mean, scale);
}

/** @param {Float32Array[]} embeddings */
function standardized(embeddings) {
  const count = embeddings.length, size = embeddings[0].length;
  const mean = new Float64Array(size), squares = new Float64Array(size);
  for (const embedding of embeddings) for (let j = 0; j < size; j++) mean[j] += embedding[j] / count;
  for (const embedding of embeddings) {
    for (let j = 0; j < size; j++) squares[j] += (embedding[j] - mean[j]) ** 2 / count;
  }
  // One scale for all features: the deviation of each, of so few cells, is little but noise.
  const scale = squares.reduce((sum, each) => sum + Math.sqrt(each), 0) / size || 1;
  const inputs = embeddings.map((embedding) =>
    Float64Array.from(embedding, (each, j) => (each - mean[j]) / scale));
  return { inputs, mean, scale };
}

/** @param {Float64Array} weights @param {Float64Array} mean @param {number} scale */
function unstandardized(weights, mean, scale) {
  const size = mean.length, row = size + 1;
  for (let start = 0; start < weights.length; start += row) {
    for (let j = 0; j < size; j++) {
      weights[start + j] /= scale;
      weights[start + size] -= weights[start + j] * mean[j];
    }
  }
  return Float32Array.from(weights);
}

/**
 * Write the score of each class.
 * @param {Float32Array | Float64Array} weights
 * @param {Float32Array | Float64Array} input
 * @param {Float64Array} scores
 */
function score(weights, input, scores) {
  const size = input.length;
  for (let k = 0, start = 0; k < scores.length; k++, start += size + 1) {
    let sum = weights[start + size];
    for (let j = 0; j < size; j++) sum += weights[start + j] * input[j];
    scores[k] = sum;
  }
}

/** @param {Float64Array} scores */
function logSum(scores) {
  const top = Math.max(...scores);
  return top + Math.log(scores.reduce((sum, each) => sum + Math.exp(each - top), 0));
}

/**
 * Return the probabilities of a head and the network together. Among the classes that the head
 * knows, it redistributes the probability that the network gives them together:
 *
 *     log p = log p_head + weight * log(p_network + 0.0001)
 *
 * A class that it does not know keeps the network's probability.
 * @param {Float32Array} weights
 * @param {string[]} classes The classes that the head knows.
 * @param {number} weight
 * @param {Float32Array} embedding
 * @param {Record<string, number>} network The network's probabilities.
 * @returns {Record<string, number>}
 */
export function blend(weights, classes, weight, embedding, network) {
  const scores = new Float64Array(classes.length);
  score(weights, embedding, scores);
  for (const [k, name] of classes.entries()) scores[k] += weight * Math.log(network[name] + LEAST);
  const total = logSum(scores), share = classes.reduce((sum, name) => sum + network[name], 0);
  const anew = classes.map((name, k) => [name, share * Math.exp(scores[k] - total)]);
  return { ...network, ...Object.fromEntries(anew) };
}
