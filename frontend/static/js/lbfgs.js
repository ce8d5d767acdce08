// The minimum of a smooth convex function of many numbers: L-BFGS (Liu and Nocedal 1989).

const MEMORY = 10, MOST_STEPS = 500, MOST_HALVINGS = 40;
// The share of the decrease that the slope promises, which a step has to reach (Armijo 1966).
const SUFFICIENT = 1e-4;

/**
 * Return where a function has its minimum.
 * @param {(at: Float64Array, gradient: Float64Array) => number} evaluate Returns the value, and
 *   writes the gradient.
 * @param {Float64Array} start
 * @param {number} tolerance The largest part of the gradient at the end.
 */
export function minimize(evaluate, start, tolerance) {
  let at = start, gradient = new Float64Array(start.length), value = evaluate(at, gradient);
  /** @type {{ step: Float64Array, turn: Float64Array, rho: number }[]} */
  const memory = [];
  for (let steps = 0; steps < MOST_STEPS && largest(gradient) > tolerance; steps++) {
    const direction = directionOf(gradient, memory);
    const slope = dot(gradient, direction);
    // Without a memory, the direction is the gradient: its length says nothing about the step's.
    let length = memory.length ? 1 : 1 / Math.sqrt(-slope);
    const next = new Float64Array(at.length), nextGradient = new Float64Array(at.length);
    let nextValue = Infinity;
    for (let halvings = 0; halvings < MOST_HALVINGS; halvings++, length /= 2) {
      for (let i = 0; i < at.length; i++) next[i] = at[i] + length * direction[i];
      nextValue = evaluate(next, nextGradient);
      if (nextValue <= value + SUFFICIENT * length * slope) break;
    }
    // Rounding hides any further decrease.
    if (!(nextValue < value)) break;
    const step = next.map((each, i) => each - at[i]);
    const turn = nextGradient.map((each, i) => each - gradient[i]);
    const curvature = dot(step, turn);
    if (curvature > 0) memory.push({ step, turn, rho: 1 / curvature });
    if (memory.length > MEMORY) memory.shift();
    [at, gradient, value] = [next, nextGradient, nextValue];
  }
  return at;
}

/**
 * Return the direction of the next step: the gradient, by the inverse of the curvature so far.
 * @param {Float64Array} gradient
 * @param {{ step: Float64Array, turn: Float64Array, rho: number }[]} memory
 */
function directionOf(gradient, memory) {
  const direction = gradient.map((each) => -each);
  const shares = memory.map(() => 0);
  for (let k = memory.length - 1; k >= 0; k--) {
    const { step, turn, rho } = memory[k];
    shares[k] = rho * dot(step, direction);
    add(direction, -shares[k], turn);
  }
  const last = memory.at(-1);
  if (last) {
    const scale = 1 / (last.rho * dot(last.turn, last.turn));
    for (let i = 0; i < direction.length; i++) direction[i] *= scale;
  }
  for (const [k, { step, turn, rho }] of memory.entries()) {
    add(direction, shares[k] - rho * dot(turn, direction), step);
  }
  return direction;
}

/** @param {Float64Array} a @param {Float64Array} b */
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** @param {Float64Array} to @param {number} share @param {Float64Array} what */
function add(to, share, what) {
  for (let i = 0; i < to.length; i++) to[i] += share * what[i];
}

/** @param {Float64Array} values */
const largest = (values) => values.reduce((most, each) => Math.max(most, Math.abs(each)), 0);
