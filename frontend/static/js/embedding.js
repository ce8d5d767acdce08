// Numbers as text: 32-bit floats, little-endian as in every browser, in base64. A count is saved as
// JSON, where an embedding would otherwise take three times as much.

const PACKED = /^(?:[\w+/]{4})*(?:[\w+/]{2}==|[\w+/]{3}=)?$/;

/** @param {Float32Array} numbers */
export function pack(numbers) {
  let text = "";
  for (const byte of new Uint8Array(numbers.buffer)) text += String.fromCharCode(byte);
  return btoa(text);
}

/** @param {string} packed */
export function unpack(packed) {
  const text = atob(packed);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

/** Return whether a value is packed numbers. @param {unknown} value */
export const isPacked = (value) => typeof value === "string" && PACKED.test(value)
  && atob(value).length % 4 === 0 && unpack(value).every(Number.isFinite);
