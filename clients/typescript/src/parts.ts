/** Files as parts, by the rules of the contract. */

import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";

const MIB = 1 << 20;
const SMALL_PARTS_UP_TO = 1 << 30;
const PARTS_MAX = 10_000;

/** A larger file goes in parts. */
export const SINGLE_BYTES_MAX = 16 * MIB;

const CHUNK_BYTES = 256 << 10;

/** The size of each part of a file but the last. It follows from the file's size alone. */
export function partBytes(size: number): number {
  if (size <= SMALL_PARTS_UP_TO) return 16 * MIB;
  let part = 64 * MIB;
  while (Math.ceil(size / part) > PARTS_MAX) part *= 2;
  return part;
}

/** Yields what stands in a file from `start` on, in chunks. Throws when it ends before `end`. */
export async function* chunks(
  file: FileHandle,
  start: number,
  end: number,
): AsyncGenerator<Uint8Array> {
  for (let position = start; position < end;) {
    const buffer = Buffer.allocUnsafeSlow(Math.min(CHUNK_BYTES, end - position));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, position);
    if (bytesRead === 0) throw new Error("the file became shorter while it was read");
    position += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

/** The SHA-256 of what stands in a file between two bytes. */
export async function digestOf(file: FileHandle, start: number, end: number): Promise<Buffer> {
  const hash = createHash("sha256");
  for await (const chunk of chunks(file, start, end)) hash.update(chunk);
  return hash.digest();
}

/** The SHA-256 of each part of a file, one after another. */
export async function partDigests(
  file: FileHandle,
  size: number,
  signal: AbortSignal,
): Promise<Buffer> {
  const digests: Buffer[] = [];
  const part = partBytes(size);
  for (let start = 0; start < size; start += part) {
    signal.throwIfAborted();
    digests.push(await digestOf(file, start, Math.min(start + part, size)));
  }
  return Buffer.concat(digests);
}
