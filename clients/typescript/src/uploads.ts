/** Uploads, which resume after any disconnect. */

import { type FileHandle, open } from "node:fs/promises";

import { type Artifact, artifactOf } from "./artifacts.js";
import { Backoff } from "./backoff.js";
import type { Connection } from "./connection.js";
import { within } from "./deadline.js";
import { present } from "./errors.js";
import { ArtifactService, type Upload } from "./gen/headrace/v1/artifact_service_pb.js";
import { chunks, digestOf, partDigests, SINGLE_BYTES_MAX } from "./parts.js";

const CALL_TIMEOUT_MS = 30_000;
/** The gateway may read the whole object back. */
const COMPLETE_TIMEOUT_MS = 3_600_000;
const PARTS_IN_FLIGHT = 4;

/** A file to be stored. */
export interface UploadOptions {
  /** Default `application/octet-stream`. */
  contentType?: string;
}

/** An artifact that was uploaded. */
export interface UploadedArtifact extends Artifact {
  /** The content was there already and was not sent. */
  readonly deduplicated: boolean;
}

const { method } = ArtifactService;

/** Stores a file under a path of the run. */
export async function uploadArtifact(
  connection: Connection,
  runId: string,
  path: string,
  file: string,
  options: UploadOptions,
  signal: AbortSignal,
): Promise<UploadedArtifact> {
  const upload = new FileUpload(connection, runId, path, options.contentType, signal);
  for (;;) {
    try {
      return await upload.attempt(file);
    } catch (error) {
      await upload.backoff.after(error, signal);
    }
  }
}

/** What all attempts of one upload share. */
class FileUpload {
  readonly backoff = new Backoff();

  constructor(
    private readonly connection: Connection,
    private readonly runId: string,
    private readonly path: string,
    private readonly contentType: string | undefined,
    private readonly signal: AbortSignal,
  ) {}

  async attempt(file: string): Promise<UploadedArtifact> {
    const content = await open(file);
    try {
      const { size } = await content.stat();
      return await (size <= SINGLE_BYTES_MAX
        ? this.#single(content, size)
        : this.#inParts(content, size));
    } finally {
      await content.close();
    }
  }

  async #single(content: FileHandle, size: number): Promise<UploadedArtifact> {
    const { runId, path, contentType } = this;
    const digest = await digestOf(content, 0, size);
    async function* requests() {
      const value = { runId, path, size: BigInt(size), digest, contentType };
      yield { message: { case: "header", value } } as const;
      for await (const chunk of chunks(content, 0, size)) {
        yield { message: { case: "chunk", value: chunk } } as const;
      }
    }
    const { artifact, deduplicated } = await this.connection.clientStreaming(
      method.uploadArtifact,
      requests(),
      this.signal,
    );
    return { ...artifactOf(artifact), deduplicated };
  }

  async #inParts(content: FileHandle, size: number): Promise<UploadedArtifact> {
    const { runId, path, contentType } = this;
    const partSha256s = await partDigests(content, size, this.signal);
    const request = { runId, path, size: BigInt(size), partSha256s, contentType };
    const { outcome } = await this.#call(CALL_TIMEOUT_MS, (signal) =>
      this.connection.unary(method.beginUpload, request, signal),
    );
    if (outcome.case === "artifact") {
      // After a failure it may be what we sent ourselves.
      return { ...artifactOf(outcome.value), deduplicated: !this.backoff.failed };
    }
    const upload = present(outcome.value, "upload");
    await this.#sendParts(upload, content, size);
    const completed = await this.#call(COMPLETE_TIMEOUT_MS, (signal) =>
      this.connection.unary(method.completeUpload, { runId, uploadId: upload.uploadId }, signal),
    );
    return { ...artifactOf(completed.artifact), deduplicated: false };
  }

  /** Sends the parts that are not stored, several at a time; the first failure ends it. */
  async #sendParts(upload: Upload, content: FileHandle, size: number): Promise<void> {
    const stored = new Set(upload.storedParts);
    const missing = Array.from({ length: upload.partCount }, (_, index) => index + 1)
      .filter((number) => !stored.has(number))
      .values();
    const stop = new AbortController();
    const signal = AbortSignal.any([this.signal, stop.signal]);
    const work = async () => {
      for (const number of missing) {
        await this.#sendPart(upload, number, content, size, signal);
        this.backoff.progress();
      }
    };
    const workers = Array.from({ length: PARTS_IN_FLIGHT }, async () => {
      try {
        await work();
      } catch (error) {
        stop.abort(error);
      }
    });
    await Promise.all(workers);
    signal.throwIfAborted();
  }

  async #sendPart(
    { uploadId, partSize }: Upload,
    partNumber: number,
    content: FileHandle,
    size: number,
    signal: AbortSignal,
  ): Promise<void> {
    const { runId } = this;
    const start = (partNumber - 1) * Number(partSize);
    const end = Math.min(start + Number(partSize), size);
    async function* requests() {
      yield { message: { case: "header", value: { runId, uploadId, partNumber } } } as const;
      for await (const chunk of chunks(content, start, end)) {
        yield { message: { case: "chunk", value: chunk } } as const;
      }
    }
    await this.connection.clientStreaming(method.uploadPart, requests(), signal);
  }

  #call<Response>(
    timeoutMs: number,
    work: (signal: AbortSignal) => Promise<Response>,
  ): Promise<Response> {
    return within({ signal: this.signal }, timeoutMs, work);
  }
}
