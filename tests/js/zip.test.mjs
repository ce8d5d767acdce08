import assert from "node:assert/strict";
import { test } from "node:test";

import { unzip, zip } from "../../frontend/static/js/zip.js";

const bytesOf = async (blob) => new Uint8Array(await blob.arrayBuffer());

// Python's zipfile reads such an archive in tests/test_workbench.py.
test("an archive holds the files and their checksums", async () => {
  const bytes = await bytesOf(await zip([["A/é.txt", new Blob(["123456789"])], ["b", new Blob([])]]));
  const view = new DataView(bytes.buffer);
  assert.equal(view.getUint32(0, true), 0x04034b50);
  // The check value of CRC-32.
  assert.equal(view.getUint32(14, true), 0xcbf43926);
  const end = bytes.length - 22;
  assert.equal(view.getUint32(end, true), 0x06054b50);
  assert.equal(view.getUint16(end + 10, true), 2);
  const directory = view.getUint32(end + 16, true);
  assert.equal(view.getUint32(directory, true), 0x02014b50);
  assert.equal(directory + view.getUint32(end + 12, true), end);
});

test("the same files give the same archive", async () => {
  const files = [["a", new Blob(["1"])]];
  assert.deepEqual(await bytesOf(await zip(files)), await bytesOf(await zip(files)));
});

test("an archive is read back", async () => {
  const files = await unzip(await zip([["A/é.txt", new Blob(["one"])], ["b", new Blob([])]]));
  assert.deepEqual([...files.keys()], ["A/é.txt", "b"]);
  assert.equal(await files.get("A/é.txt").text(), "one");
});

test("a file that is no archive, or a damaged one, is refused", async () => {
  const bytes = await bytesOf(await zip([["a", new Blob(["content"])]]));
  const damaged = bytes.with(32, bytes[32] + 1);
  for (const part of [bytes.slice(0, -1), damaged, bytes.slice(0, 10), new Uint8Array(0)]) {
    await assert.rejects(unzip(new Blob([part])), RangeError);
  }
});
