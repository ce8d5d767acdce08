// Elements of the page's templates.

import { fetchPatiently } from "./retry.js";

/** @import { Clock } from "./retry.js" */

/**
 * Return the element of a selector, of a kind. It throws if the template has no such element.
 * @template {Element} [T=HTMLElement]
 * @param {ParentNode} root
 * @param {string} selector
 * @param {new () => T} [kind]
 * @returns {T}
 */
export function find(root, selector, kind) {
  const element = root.querySelector(selector);
  if (!(element instanceof (kind ?? HTMLElement))) throw new TypeError(`The page has no ${selector}`);
  return /** @type {T} */ (element);
}

/**
 * Return all elements of a selector.
 * @param {ParentNode} root
 * @param {string} selector
 * @returns {HTMLElement[]}
 */
export const findAll = (root, selector) => [...root.querySelectorAll(selector)].map((element) =>
  /** @type {HTMLElement} */ (element));

/**
 * Return an element for each key, in their order: copies of the list's template, made or removed as
 * the keys require.
 * @param {Element} list
 * @param {string[]} keys
 */
export function repeat(list, keys) {
  const template = find(list, "template", HTMLTemplateElement);
  const copies = new Map(findAll(list, "[data-key]").map((copy) => [copy.dataset.key, copy]));
  for (const [key, copy] of copies) if (!keys.includes(key ?? "")) copy.remove();
  const elements = keys.map((key) => {
    const known = copies.get(key);
    if (known) return known;
    const copy = /** @type {HTMLElement} */ (template.content.firstElementChild?.cloneNode(true));
    copy.dataset.key = key;
    return copy;
  });
  // Moving an element that is in its place would take the focus from it.
  const placed = findAll(list, "[data-key]");
  if (elements.some((element, at) => element !== placed[at])) template.before(...elements);
  return elements;
}

/**
 * Fetch a page of this server; throw if it is not available.
 * @param {string} address
 * @param {Clock} [clock]
 */
export async function fetchPage(address, clock) {
  const response = await fetchPatiently(address, {}, clock);
  if (!response.ok) throw new Error(`${address} has status ${response.status}`);
  return new DOMParser().parseFromString(await response.text(), "text/html");
}
