// Undo and redo of a value that is never modified in place.

/** @typedef {{ name: string, size: number }} Step What was done, and to how many cells or images. */

/** @template T */
export class History {
  /** @type {{ step: Step, value: T }[]} */
  #past = [];
  /** @type {{ step: Step, value: T }[]} */
  #future = [];

  /** @param {T} value */
  constructor(value) {
    this.value = value;
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /** @param {Step} step @param {T} value */
  change(step, value) {
    this.#past.push({ step, value: this.value });
    this.#future = [];
    this.value = value;
  }

  /** Return to the value before the last step; return that step, or null if there is none. */
  undo() {
    return this.#move(this.#past, this.#future);
  }

  redo() {
    return this.#move(this.#future, this.#past);
  }

  /**
   * @param {{ step: Step, value: T }[]} from
   * @param {{ step: Step, value: T }[]} to
   */
  #move(from, to) {
    const last = from.pop();
    if (!last) return null;
    to.push({ step: last.step, value: this.value });
    this.value = last.value;
    return last.step;
  }
}
