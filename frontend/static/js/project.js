// A count as one file: an archive of session.json and the images.

import { isHead } from "./adaptation.js";
import { isPacked } from "./embedding.js";
import { BLANK, isReport } from "./fields.js";
import { unzip, zip } from "./zip.js";

/** @import { Count } from "./collection.js" */
/** @import { Upload } from "./queue.js" */

const FORMAT = 1;
const SESSION = "session.json", FOLDER = "images/";

/**
 * @param {Count} count
 * @param {Upload[]} uploads
 */
export async function toProject(count, uploads) {
  const described = uploads.map(({ file, ...facts }) => ({ ...facts, heatMap: null, type: file.type }));
  const session = JSON.stringify({ format: FORMAT, count, uploads: described });
  return zip([
    [SESSION, new Blob([session])],
    ...uploads.map(({ id, file }) => /** @type {[string, Blob]} */ ([FOLDER + id, file])),
  ]);
}

/**
 * Read a project; throw an error if it is none, or damaged.
 * @param {Blob} archive
 * @returns {Promise<{ count: Count, uploads: Upload[] }>}
 */
export async function fromProject(archive) {
  const files = await unzip(archive);
  const { format, count, uploads } = JSON.parse((await files.get(SESSION)?.text()) ?? "{}");
  if (format !== FORMAT || !isCount(count) || !uploads.every(isKnown)) {
    throw new RangeError("The file is not a project of this page.");
  }
  return {
    count,
    uploads: uploads.map((/** @type {Upload & { type: string }} */ { type, ...facts }) => {
      const content = files.get(FOLDER + facts.id);
      if (!content) throw new RangeError("The project lacks an image.");
      return { ...facts, file: new File([content], facts.name, { type }) };
    }),
  };
}

/** @param {any} count */
const isCount = ({ id, wanted, images, labels, report = BLANK, head }) =>
  [id, wanted, ...images, ...Object.values(labels)].every((each) => typeof each === "string")
  && isReport(report) && (head === undefined || isHead(head));

/** @param {any} upload */
const isKnown = ({ id, name, state, found }) =>
  [id, name, state].every((each) => typeof each === "string") && found.every(isAnswered);

/** @param {any} cell */
const isAnswered = ({ verdict, probabilities, box, embedding }) =>
  ["confident", "uncertain", "rejected"].includes(verdict)
  && [...Object.values(probabilities), ...(box ?? [])].every(Number.isFinite)
  && (embedding === undefined || isPacked(embedding));
