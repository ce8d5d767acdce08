import assert from "node:assert/strict";
import { test } from "node:test";

import { zip } from "../../frontend/static/js/zip.js";

const text = (value) => new TextEncoder().encode(value);

// Python's zipfile reads such an archive in tests/test_workbench.py.
test("an archive holds the files and their checksums", () => {
  const bytes = zip([["A/é.txt", text("123456789")], ["b", text("")]]);
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

test("the same files give the same archive", () => {
  const files = [["a", text("1")]];
  assert.deepEqual(zip(files), zip(files));
});
