/** The writer as its user sees it: log, flush, finish. */

import { setImmediate as turn } from "node:timers/promises";

import type { MessageInitShape } from "@bufbuild/protobuf";

import { Backoff, pause } from "./backoff.js";
import { RECORD_POINTS_MAX } from "./backlog.js";
import { makeClock } from "./clock.js";
import { Condition } from "./condition.js";
import type { Connection } from "./connection.js";
import { type CallOptions, within } from "./deadline.js";
import { HeadraceError } from "./errors.js";
import type { OpenWriterSchema } from "./gen/headrace/v1/metric_service_pb.js";
import { newId } from "./identifiers.js";
import { closedError, Ledger, type Rejection, type WriterStatus } from "./ledger.js";
import { Conversation } from "./stream.js";

const FLUSH_TIMEOUT_MS = 30_000;

/** A writer to be opened. Only `runId` is required. */
export interface WriterOptions {
  /** The run to write to. */
  runId: string;
  /**
   * Names the writer, with `incarnation`: 32 lower-case hex digits each. A process that is to
   * continue another one's writer gives the same two, and logs the same records again from the
   * first on: those that are committed already are not sent. Default: new ones.
   */
  writerId?: string;
  /** See `writerId`. */
  incarnation?: string;
  /** Of the process in its job, from 0. */
  rank?: number;
  /** Which start of the job this is, from 1. */
  attempt?: number;
  /** The first step this attempt computes anew; absent: hides nothing. */
  resumeStep?: number | bigint;
  /** Keys that no resume step hides. */
  resumeExemptKeys?: string[];
  /** Points in a batch; default 4,096, at most 8,192. */
  batchPointsMax?: number;
  /** How long a record waits for company, in milliseconds; default 50. */
  lingerMs?: number;
  /** Points logged and not acknowledged; default 1,048,576. */
  windowPoints?: number;
  /** What `log` does when there are more: wait for room (the default), or fail. */
  whenFull?: "block" | "error";
  /**
   * Is told of points that the gateway rejected for their content, one call at a time. What it
   * throws is an uncaught exception.
   */
  onRejection?: (rejection: Rejection) => void;
}

/** Logs records of one process into one run. Made by `Client.openWriter`. */
export class Writer {
  readonly #connection: Connection;
  readonly #open: MessageInitShape<typeof OpenWriterSchema>;
  readonly #whenFull: "block" | "error";
  readonly #onRejection: ((rejection: Rejection) => void) | undefined;
  readonly #ledger: Ledger;
  readonly #changed = new Condition();
  readonly #closing = new AbortController();
  readonly #clock = makeClock();
  #conversation: Conversation | undefined;
  /** @internal Resolves when the writer does nothing more in the background. */
  readonly ended: Promise<void>;

  /** @internal */
  constructor(connection: Connection, options: WriterOptions) {
    const { batchPointsMax = 4_096, lingerMs = 50, windowPoints = 1 << 20 } = options;
    checkCount("batchPointsMax", batchPointsMax, 1, RECORD_POINTS_MAX);
    checkCount("windowPoints", windowPoints, 1, Number.MAX_SAFE_INTEGER);
    const { resumeStep } = options;
    this.#connection = connection;
    this.#whenFull = options.whenFull ?? "block";
    this.#onRejection = options.onRejection;
    this.#ledger = new Ledger({ batchPointsMax, lingerMs, windowPoints });
    this.#open = {
      runId: options.runId,
      writerId: options.writerId ?? newId(),
      incarnation: options.incarnation ?? newId(),
      rank: options.rank ?? 0,
      attempt: options.attempt ?? 1,
      resumeStep: resumeStep === undefined ? undefined : toInt64("resumeStep", resumeStep),
      resumeExemptKeys: options.resumeExemptKeys ?? [],
    };
    this.ended = this.#run();
  }

  /** How far the writer has come. */
  get status(): WriterStatus {
    return this.#ledger.status;
  }

  /**
   * Logs one record: values at a step, now. Steps may come in any order, and again.
   *
   * Await it: it is how the writer says that its window is full. Otherwise it does not wait for the
   * gateway, only, after each full batch, for a turn of the event loop, in which it is sent.
   *
   * @throws {HeadraceError} `WINDOW_FULL`, `WRITER_CLOSED`, or the failure for which the writer
   *   gave up; the record is then not logged.
   */
  async log(step: number | bigint, values: Readonly<Record<string, number>>): Promise<void> {
    await this.logAt(step, this.#clock(), values);
  }

  /** {@link log} at a time of the caller's, in microseconds since 1970-01-01 UTC. */
  async logAt(
    step: number | bigint,
    timeUnixUs: number | bigint,
    values: Readonly<Record<string, number>>,
  ): Promise<void> {
    const at = toInt64("step", step);
    const time = toInt64("timeUnixUs", timeUnixUs);
    const points = checkedCount(values);
    while (!this.#ledger.admits(points)) {
      if (this.#whenFull === "error") {
        throw new HeadraceError("WINDOW_FULL", "too many points are not acknowledged");
      }
      await this.#changed.wait();
    }
    if (points === 0) return;
    const { begun, complete, rejection } = this.#ledger.record(at, time, values, Date.now());
    if (rejection !== undefined) this.#reject([rejection]);
    if (begun || complete) this.#conversation?.pump();
    if (complete) await turn();
  }

  /**
   * Waits until everything logged before is committed, by default for at most 30 s.
   *
   * @throws {HeadraceError} `DEADLINE_EXCEEDED`, or the failure for which the writer gave up.
   */
  async flush(options: CallOptions = {}): Promise<void> {
    const target = this.#ledger.flush();
    await this.#reach(options, () => this.#ledger.committedSequence >= target);
  }

  /**
   * Waits until everything is committed and the gateway has noted the writer's end, by default for
   * at most 30 s; then closes it. `log` fails from the call on.
   *
   * @throws {HeadraceError} `DEADLINE_EXCEEDED`: the writer goes on, and `finish` may be called
   *   again; or the failure for which it gave up.
   */
  async finish(options: CallOptions = {}): Promise<void> {
    this.#ledger.finish();
    await this.#reach(options, () => this.#ledger.finished);
    this.close();
  }

  /**
   * Drops the writer without finishing it. What is not acknowledged is lost to this process; a
   * later writer with the same ids continues. Idempotent.
   */
  close(): void {
    this.#ledger.closed = true;
    this.#closing.abort();
    this.#changed.notify();
  }

  async #reach(options: CallOptions, reached: () => boolean): Promise<void> {
    this.#conversation?.pump();
    await within(options, FLUSH_TIMEOUT_MS, async (signal) => {
      for (;;) {
        if (this.#ledger.failure !== undefined) throw this.#ledger.failure;
        if (reached()) return;
        if (this.#ledger.closed) throw closedError();
        await this.#changed.wait(signal);
      }
    });
  }

  /** Holds one conversation after the other until the writer is finished, closed or has failed. */
  async #run(): Promise<void> {
    const backoff = new Backoff();
    try {
      while (!this.#ledger.ended) await this.#converse(backoff);
    } catch (error) {
      if (this.#ledger.ended) return;
      this.#ledger.failure =
        error instanceof HeadraceError ? error : new HeadraceError("INTERNAL", String(error));
      this.#changed.notify();
    }
  }

  /** Holds one conversation and waits for the next; throws when there is to be none. */
  async #converse(backoff: Backoff): Promise<void> {
    const { signal } = this.#closing;
    const before = this.#ledger.committedSequence;
    const listener = {
      progressed: () => {
        this.#changed.notify();
      },
      rejected: (rejections: readonly Rejection[]) => {
        this.#reject(rejections);
      },
    };
    this.#conversation = await Conversation.begin(this.#connection, this.#ledger, listener, signal);
    const { moveAfterMs, failure } = await this.#conversation.hold(this.#open, signal);
    this.#conversation = undefined;
    if (this.#ledger.ended) return;
    if (this.#ledger.committedSequence > before) backoff.progress();
    if (moveAfterMs === undefined) await backoff.after(failure, signal);
    else await pause(moveAfterMs, signal);
  }

  #reject(rejections: readonly Rejection[]): void {
    const tell = this.#onRejection;
    if (tell === undefined) return;
    for (const rejection of rejections) {
      queueMicrotask(() => {
        tell(rejection);
      });
    }
  }
}

function toInt64(field: string, value: number | bigint): bigint {
  if (typeof value === "number" && !Number.isInteger(value)) {
    throw new TypeError(`${field} must be an integer, not ${value}`);
  }
  const integer = BigInt(value);
  if (BigInt.asIntN(64, integer) !== integer) {
    throw new RangeError(`${field} must fit 64 bits, unlike ${value}`);
  }
  return integer;
}

/** Counts the values; throws where one is no number, before anything is logged. */
function checkedCount(values: Readonly<Record<string, number>>): number {
  let count = 0;
  for (const key of Object.keys(values)) {
    if (typeof values[key] !== "number") {
      throw new TypeError(`the value of ${JSON.stringify(key)} is a ${typeof values[key]}`);
    }
    count += 1;
  }
  return count;
}

function checkCount(field: string, value: number, least: number, greatest: number): void {
  if (!Number.isInteger(value) || value < least || value > greatest) {
    throw new RangeError(`${field} must be ${least} to ${greatest}, not ${value}`);
  }
}
