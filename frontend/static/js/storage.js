// The count in the browser's database, so that it survives a reload, a crash or a restart.

/** @import { Count } from "./collection.js" */
/** @import { Upload } from "./queue.js" */

const NAME = "bloodcells", FORMAT = 1;
// The images are apart from what is known of them: they do not change.
const COUNT = "count", FACTS = "facts", FILES = "files";
// The only key in COUNT.
const CURRENT = "current";

/** @returns {Promise<IDBDatabase>} */
function open() {
  const request = indexedDB.open(NAME, FORMAT);
  request.onupgradeneeded = () => {
    request.result.createObjectStore(COUNT);
    request.result.createObjectStore(FACTS, { keyPath: "id" });
    request.result.createObjectStore(FILES);
  };
  return completed(request);
}

/**
 * Use the database, and close it.
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(stores: IDBTransaction) => Promise<T>} use
 */
async function transact(mode, use) {
  const database = await open();
  try {
    return await use(database.transaction([COUNT, FACTS, FILES], mode));
  } finally {
    database.close();
  }
}

/** Return the saved count and its images, or null. */
export const load = () => transact("readonly", async (stores) => {
  /** @type {[Count | undefined, Omit<Upload, "file">[], File[]]} */
  const [count, facts, files] = await Promise.all([
    completed(stores.objectStore(COUNT).get(CURRENT)),
    completed(stores.objectStore(FACTS).getAll()),
    completed(stores.objectStore(FILES).getAll()),
  ]);
  // Both are sorted by id.
  return count ? { count, uploads: facts.map((known, at) => ({ ...known, file: files[at] })) } : null;
});

/**
 * Save a count and its images; forget images that it does not have.
 * @param {Count} count
 * @param {Upload[]} uploads
 * @param {Set<string>} changed The ids of the images that changed since they were saved.
 */
export const save = (count, uploads, changed) => transact("readwrite", async (stores) => {
  stores.objectStore(COUNT).put(count, CURRENT);
  const known = stores.objectStore(FACTS), files = stores.objectStore(FILES);
  const saved = new Set((await completed(known.getAllKeys())).map(String));
  for (const { file, ...facts } of uploads) {
    if (!saved.has(facts.id)) files.put(file, facts.id);
    if (!saved.delete(facts.id) || changed.has(facts.id)) known.put(facts);
  }
  for (const id of saved) {
    known.delete(id);
    files.delete(id);
  }
  await finished(stores);
});

/** Remove all that was saved from this computer. */
export const clear = () => completed(indexedDB.deleteDatabase(NAME));

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
const completed = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** @param {IDBTransaction} transaction @returns {Promise<void>} */
const finished = (transaction) => new Promise((resolve, reject) => {
  transaction.oncomplete = () => resolve();
  transaction.onabort = () => reject(transaction.error);
});
