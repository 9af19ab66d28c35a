/** The client: what its user begins with. */

import {
  type Artifact,
  type ArtifactEntry,
  listArtifacts,
  type ListArtifactsOptions,
} from "./artifacts.js";
import { Connection, type ConnectOptions } from "./connection.js";
import { type CallOptions, within } from "./deadline.js";
import { downloadArtifact } from "./downloads.js";
import {
  type Columns,
  listSeries,
  type ListSeriesOptions,
  readMetrics,
  type ReadOptions,
  type Series,
} from "./reading.js";
import {
  createRun,
  finishRun,
  type FinishRunOptions,
  getRun,
  heartbeatRun,
  type Run,
  type RunOptions,
} from "./runs.js";
import { uploadArtifact, type UploadedArtifact, type UploadOptions } from "./uploads.js";
import { Writer, type WriterOptions } from "./writer.js";

/** Where a gateway listens unless told otherwise. */
export const DEFAULT_ADDRESS = "127.0.0.1:7420";

const CALL_TIMEOUT_MS = 30_000;
const NO_TIMEOUT = Number.POSITIVE_INFINITY;

/**
 * Prepares a client; it does not wait for the gateway.
 *
 * @param addresses - `host:port` (plain text) or `https://host:port` (TLS), or several of one kind
 *   separated by commas, which calls and streams then take in turn.
 */
export function connect(addresses: string = DEFAULT_ADDRESS, options: ConnectOptions = {}): Client {
  return new Client(new Connection(addresses, options));
}

/**
 * Talks to one gateway, or to several that share a database. Made by {@link connect}.
 *
 * All methods fail with a {@link HeadraceError} whose `reason` is the gateway's. Calls that take
 * long (reading, transfers) have no deadline but the one they are given; the others have 30 s, and
 * are not repeated by the client.
 */
export class Client {
  readonly #connection: Connection;
  readonly #writers = new Set<Writer>();

  /** @internal */
  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** Ends the connection and drops its writers: what they have not sent is lost. */
  close(): void {
    for (const writer of this.#writers) writer.close();
    this.#connection.close();
  }

  /**
   * Creates a run, or returns the one that has this id, with `created` false. Fails with
   * `RUN_EXISTS` when that one has other policies. Its experiment stays what it is.
   */
  createRun(
    options: RunOptions = {},
    call: CallOptions = {},
  ): Promise<Run & { readonly created: boolean }> {
    return within(call, CALL_TIMEOUT_MS, (signal) => createRun(this.#connection, options, signal));
  }

  /** Reads a run. Fails with `RUN_NOT_FOUND`. */
  getRun(runId: string, call: CallOptions = {}): Promise<Run> {
    return within(call, CALL_TIMEOUT_MS, (signal) => getRun(this.#connection, runId, signal));
  }

  /** Ends a run. Returns false when a newer attempt exists: nothing was changed. */
  finishRun(
    runId: string,
    options: FinishRunOptions = {},
    call: CallOptions = {},
  ): Promise<boolean> {
    return within(call, CALL_TIMEOUT_MS, (signal) =>
      finishRun(this.#connection, runId, options, signal),
    );
  }

  /** Says that the run's job is alive. Not needed while a writer is open. */
  heartbeatRun(runId: string, call: CallOptions = {}): Promise<void> {
    return within(call, CALL_TIMEOUT_MS, (signal) => heartbeatRun(this.#connection, runId, signal));
  }

  /**
   * Makes a writer. It does not wait for the gateway: failures are reported by `log`, `flush` and
   * `finish`. Until it is finished or closed it keeps the process alive.
   */
  openWriter(options: WriterOptions): Writer {
    const writer = new Writer(this.#connection, options);
    this.#writers.add(writer);
    void writer.ended.then(() => this.#writers.delete(writer));
    return writer;
  }

  /** Reads points of a run from one consistent snapshot, ordered by key and rank. */
  readMetrics(
    runId: string,
    options: ReadOptions = {},
    call: CallOptions = {},
  ): Promise<Columns[]> {
    return within(call, NO_TIMEOUT, (signal) =>
      readMetrics(this.#connection, runId, options, signal),
    );
  }

  /** Lists the series of a run, ordered by key and rank. */
  listSeries(
    runId: string,
    options: ListSeriesOptions = {},
    call: CallOptions = {},
  ): Promise<Series[]> {
    return within(call, CALL_TIMEOUT_MS, (signal) =>
      listSeries(this.#connection, runId, options, signal),
    );
  }

  /**
   * Stores a file under a path of the run, replacing what is there when all of it has arrived. It
   * resumes after any disconnect; calling it again after a crash resumes too.
   */
  uploadArtifact(
    runId: string,
    path: string,
    file: string,
    options: UploadOptions = {},
    call: CallOptions = {},
  ): Promise<UploadedArtifact> {
    return within(call, NO_TIMEOUT, (signal) =>
      uploadArtifact(this.#connection, runId, path, file, options, signal),
    );
  }

  /**
   * Reads an artifact into a file, verified part by part. What has arrived is kept in
   * `<file>.part`, so that it resumes after any disconnect, and after a crash when it is called
   * again. Fails with `ARTIFACT_NOT_FOUND`.
   */
  downloadArtifact(
    runId: string,
    path: string,
    file: string,
    call: CallOptions = {},
  ): Promise<Artifact> {
    return within(call, NO_TIMEOUT, (signal) =>
      downloadArtifact(this.#connection, runId, path, file, signal),
    );
  }

  /** Lists artifacts and folders of a run, ordered by the bytes of their paths. */
  listArtifacts(
    runId: string,
    options: ListArtifactsOptions = {},
    call: CallOptions = {},
  ): Promise<ArtifactEntry[]> {
    return within(call, CALL_TIMEOUT_MS, (signal) =>
      listArtifacts(this.#connection, runId, options, signal),
    );
  }
}
