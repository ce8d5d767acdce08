// Zip archives of files that are already compressed, so only stored (APPNOTE.TXT 6.3.10, PKWARE).

const LOCAL = 0x04034b50, CENTRAL = 0x02014b50, END = 0x06054b50;
const VERSION = 20, UTF8 = 0x0800;
// 1 January 1980: the same cells give the same archive.
const TIME = 0, DATE = 0x21;
const MOST = 0xffffffff;
const END_BYTES = 22, CENTRAL_BYTES = 46, LOCAL_BYTES = 30;

/**
 * Return an archive of files, given as path and content; at most 4 GB and 65,535 files.
 * @param {[string, Blob][]} files
 */
export async function zip(files) {
  /** @type {BlobPart[]} */
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [path, content] of files) {
    const name = new TextEncoder().encode(path);
    const checksum = crc32(new Uint8Array(await content.arrayBuffer()));
    /** @type {Field[]} */
    const common = [
      [2, VERSION], [2, UTF8], [2, 0], [2, TIME], [2, DATE],
      [4, checksum], [4, content.size], [4, content.size], [2, name.length], [2, 0],
    ];
    const local = record([[4, LOCAL], ...common]);
    directory.push(
      record([[4, CENTRAL], [2, VERSION], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]),
      name,
    );
    parts.push(local, name, content);
    offset += local.length + name.length + content.size;
    if (offset > MOST) throw new RangeError("The archive is larger than 4 GB.");
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record([
    [4, END], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0],
  ]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/**
 * Return the files of an archive that `zip` wrote, by path; throw a RangeError if it is another.
 * @param {Blob} archive
 */
export async function unzip(archive) {
  const end = await view(archive, archive.size - END_BYTES, END_BYTES);
  if (end.getUint32(0, true) !== END) throw new RangeError("The archive has no end.");
  const directory = await view(archive, end.getUint32(16, true), end.getUint32(12, true));
  /** @type {Map<string, Blob>} */
  const files = new Map();
  for (let at = 0; at < directory.byteLength;) {
    if (directory.getUint32(at, true) !== CENTRAL || directory.getUint16(at + 10, true) !== 0) {
      throw new RangeError("The archive is compressed or damaged.");
    }
    const length = directory.getUint16(at + 28, true);
    const name = new Uint8Array(directory.buffer, at + CENTRAL_BYTES, length);
    const start = directory.getUint32(at + 42, true) + LOCAL_BYTES + length;
    const content = archive.slice(start, start + directory.getUint32(at + 24, true));
    const bytes = new Uint8Array(await content.arrayBuffer());
    if (crc32(bytes) !== directory.getUint32(at + 16, true)) throw new RangeError("A file is damaged.");
    files.set(new TextDecoder().decode(name), content);
    at += CENTRAL_BYTES + length;
  }
  return files;
}

/** @param {Blob} archive @param {number} start @param {number} size */
async function view(archive, start, size) {
  const part = archive.slice(Math.max(0, start), start + size);
  if (part.size !== size) throw new RangeError("The archive ends too early.");
  return new DataView(await part.arrayBuffer());
}

/** @typedef {[number, number]} Field A number of bytes, 2 or 4, and a value. */

/** @param {Field[]} fields */
function record(fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [size]) => sum + size, 0));
  const writer = new DataView(bytes.buffer);
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) writer.setUint16(at, value, true);
    else writer.setUint32(at, value, true);
    at += size;
  }
  return bytes;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  return rest;
});

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let rest = 0xffffffff;
  for (const byte of bytes) rest = TABLE[(rest ^ byte) & 0xff] ^ (rest >>> 8);
  return (rest ^ 0xffffffff) >>> 0;
}
