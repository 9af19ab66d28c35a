/** Downloads, verified part by part, which resume after any disconnect. */

import { createHash, type Hash } from "node:crypto";
import { constants, type FileHandle, open, rename, rm } from "node:fs/promises";

import { type Artifact, artifactOf } from "./artifacts.js";
import { Backoff } from "./backoff.js";
import { type Connection, decoder } from "./connection.js";
import { within } from "./deadline.js";
import { HeadraceError, present } from "./errors.js";
import {
  type Artifact as ArtifactMessage,
  ArtifactService,
  DownloadArtifactResponseSchema,
} from "./gen/headrace/v1/artifact_service_pb.js";
import { digestOf } from "./parts.js";

const CALL_TIMEOUT_MS = 30_000;
const DIGEST_BYTES = 32;
/** How often the content may be replaced under a download before it gives up. */
const CHANGES_MAX = 3;

const { method } = ArtifactService;

/** Reads an artifact into a file. What has arrived is kept in `<file>.part` until all of it has. */
export async function downloadArtifact(
  connection: Connection,
  runId: string,
  path: string,
  file: string,
  signal: AbortSignal,
): Promise<Artifact> {
  const part = `${file}.part`;
  const draft = await open(part, constants.O_RDWR | constants.O_CREAT);
  let artifact: ArtifactMessage;
  try {
    artifact = await downloadInto(draft, connection, runId, path, signal);
    await draft.sync();
  } catch (error) {
    if ((await draft.stat()).size === 0) await rm(part, { force: true });
    throw error;
  } finally {
    await draft.close();
  }
  await rename(part, file);
  return artifactOf(artifact);
}

async function downloadInto(
  draft: FileHandle,
  connection: Connection,
  runId: string,
  path: string,
  signal: AbortSignal,
): Promise<ArtifactMessage> {
  const backoff = new Backoff();
  let download: Download | undefined;
  let changes = 0;
  for (;;) {
    const before = download?.verified ?? 0;
    try {
      download ??= await begin(draft, connection, runId, path, signal);
      await download.rest(connection, signal);
      return download.artifact;
    } catch (error) {
      if (download !== undefined && download.verified > before) backoff.progress();
      if (error instanceof HeadraceError && error.reason === "ARTIFACT_CHANGED") {
        if (++changes > CHANGES_MAX) throw error;
        download = undefined;
      } else {
        await backoff.after(error, signal);
      }
    }
  }
}

async function begin(
  draft: FileHandle,
  connection: Connection,
  runId: string,
  path: string,
  signal: AbortSignal,
): Promise<Download> {
  const { artifact } = await within({ signal }, CALL_TIMEOUT_MS, (limited) =>
    connection.unary(method.statArtifact, { runId, path }, limited),
  );
  const download = new Download(draft, present(artifact, "artifact"));
  await download.verify();
  return download;
}

/** One content on its way into a draft. */
class Download {
  /** Bytes at the draft's beginning that are whole parts of the artifact. */
  verified = 0;
  readonly #size: number;
  readonly #partSize: number;

  constructor(
    private readonly draft: FileHandle,
    readonly artifact: ArtifactMessage,
  ) {
    this.#size = Number(artifact.size);
    this.#partSize = Number(artifact.partSize);
  }

  /** Looks how much of the artifact the draft has already. */
  async verify(): Promise<void> {
    const { size } = await this.draft.stat();
    while (this.verified < this.#size && this.#partEnd <= size) {
      if (!this.#matches(await digestOf(this.draft, this.verified, this.#partEnd))) return;
      this.verified = this.#partEnd;
    }
  }

  /** Appends what follows the verified bytes, and counts each part as verified when it is. */
  async rest(connection: Connection, signal: AbortSignal): Promise<void> {
    await this.draft.truncate(this.verified);
    if (this.verified === this.#size) return;
    const { runId, path, digest } = this.artifact;
    const responses = connection.serverStreaming(
      method.downloadArtifact,
      { runId, path, digest, offset: BigInt(this.verified) },
      signal,
      decoder(DownloadArtifactResponseSchema),
    );
    const arriving: Arriving = { position: this.verified, hash: createHash("sha256") };
    for await (const { message } of responses) {
      if (message.case === "chunk") await this.#append(message.value, arriving);
    }
    if (this.verified < this.#size) {
      throw new HeadraceError("UNAVAILABLE", "the download ended early");
    }
  }

  async #append(chunk: Uint8Array, arriving: Arriving): Promise<void> {
    for (let rest = chunk; rest.length > 0;) {
      const piece = rest.subarray(0, this.#partEnd - arriving.position);
      if (piece.length === 0) {
        throw new HeadraceError("DATA_LOSS", "the download has too many bytes");
      }
      await this.draft.write(piece, 0, piece.length, arriving.position);
      arriving.hash.update(piece);
      arriving.position += piece.length;
      rest = rest.subarray(piece.length);
      if (arriving.position === this.#partEnd) {
        if (!this.#matches(arriving.hash.digest())) {
          const message = `the part at byte ${this.verified} was damaged on the way`;
          throw new HeadraceError("DATA_LOSS", message, { reason: "DIGEST_MISMATCH" });
        }
        this.verified = this.#partEnd;
        arriving.hash = createHash("sha256");
      }
    }
  }

  /** Where the part after the verified bytes ends. */
  get #partEnd(): number {
    return Math.min(this.verified + this.#partSize, this.#size);
  }

  /** Whether the digest is that of the part after the verified bytes. */
  #matches(digest: Buffer): boolean {
    const start = (this.verified / this.#partSize) * DIGEST_BYTES;
    return digest.equals(this.artifact.partSha256s.subarray(start, start + DIGEST_BYTES));
  }
}

/** A part that is not all there yet. */
interface Arriving {
  /** Where its next byte stands in the file. */
  position: number;
  hash: Hash;
}
