// Elements of the page's templates.

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
 * Fetch a page of this server.
 * @param {string} address
 * @param {AbortSignal} [signal]
 */
export async function fetchPage(address, signal) {
  return new DOMParser().parseFromString(await (await fetch(address, { signal })).text(), "text/html");
}
