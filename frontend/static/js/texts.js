// The texts of frontend/texts.py, where a name of the service chooses one.

/** @typedef {any} Texts */

/**
 * Return a text with values in the places of its {}, in their order.
 * @param {string} text
 * @param {...unknown} values
 */
export const fill = (text, ...values) => values.reduce(
  (/** @type {string} */ filled, value) => filled.replace("{}", String(value)), text,
);

/**
 * Return the name of a class, or of another kind. A version may know classes that the page has no
 * name for.
 * @param {string} label
 * @param {Texts} texts
 * @returns {string}
 */
export const labelName = (label, texts) => texts.cells[label] ?? label;

/**
 * Return the name of a group: a kind of cell, or what the page calls the others.
 * @param {string} key
 * @param {Texts} texts
 * @returns {string}
 */
export const groupName = (key, texts) => texts.groups[key] ?? labelName(key, texts);

/**
 * Return the texts about a problem. The edge has kinds that the page does not know.
 * @param {string} kind
 * @param {Texts} texts
 */
export const problemOf = (kind, texts) => texts.problems[kind] ?? texts.problems.ServiceError;
