/** Ids that clients make. */

import { randomBytes } from "node:crypto";

/** Makes an id for a run, a writer or an incarnation: a UUID of version 7, 32 hex digits. */
export function newId(): string {
  const id = randomBytes(16);
  id.writeUIntBE(Date.now(), 0, 6);
  id.writeUInt8((id.readUInt8(6) & 0x0f) | 0x70, 6);
  id.writeUInt8((id.readUInt8(8) & 0x3f) | 0x80, 8);
  return id.toString("hex");
}
