/**
 * What a writer knows: its records, how far they are committed, and what is to be sent next. Pure:
 * it does no I/O and is told the time. The writer fills it, the stream empties it.
 */

import { Backlog, type Block, RECORD_POINTS_MAX } from "./backlog.js";
import { HeadraceError, type Reason, reasonOf } from "./errors.js";
import type {
  Opened,
  Rejection as RejectionMessage,
  WriterCounters,
} from "./gen/headrace/v1/metric_service_pb.js";
import { KEYS_MAX, KeyDictionary } from "./keys.js";

/** A sample of rejected points; the other points of their records are stored. */
export interface Rejection {
  /** Absent when this version does not know it. */
  readonly reason: Reason | undefined;
  /** The key, or its index in decimal when it has none. */
  readonly key: string;
  /** The step of the first such point. */
  readonly step: bigint;
  /** The record with the point ends at or before it. */
  readonly sequence: number;
  /** The offending field. */
  readonly field: string;
  /** For people. */
  readonly detail: string;
  /** How many points this stands for. */
  readonly points: number;
}

/** Counts of a writer, since its first stream. */
export interface Counters {
  readonly acceptedPoints: number;
  readonly latePoints: number;
  readonly repeatedPoints: number;
  readonly rejectedPoints: number;
  readonly lostRecords: number;
}

/** How far a writer has come. */
export interface WriterStatus {
  /** The last record logged. */
  readonly loggedSequence: number;
  /** Every record up to it is durable. */
  readonly committedSequence: number;
  /** Points logged and not acknowledged. */
  readonly pendingPoints: number;
  /** As last told by the gateway. */
  readonly counters: Counters;
  /** Whether the gateway has noted the writer's end. */
  readonly finished: boolean;
  /** Streams opened so far. */
  readonly streams: number;
  /** How often the gateway asked to move. */
  readonly reconnects: number;
  /** Why the writer gave up. */
  readonly failure: HeadraceError | undefined;
}

/** What a {@link Ledger} is told about its writer. */
export interface LedgerOptions {
  batchPointsMax: number;
  lingerMs: number;
  windowPoints: number;
}

/** What to send next: a block's records, the writer's end, or nothing for a while. */
export type Next =
  | { readonly send: "batch"; readonly block: Block; readonly from: number }
  | { readonly send: "finish"; readonly lastSequence: number }
  | { readonly send: "nothing"; readonly forMs: number };

/** The state of one writer. */
export class Ledger {
  readonly keys = new KeyDictionary();
  streams = 0;
  reconnects = 0;
  finished = false;
  closed = false;
  failure: HeadraceError | undefined;
  readonly #options: LedgerOptions;
  readonly #backlog: Backlog;
  #committed = 0;
  #counters: Counters = countersOf();
  #flushTo = 0; // records up to it do not linger
  #finishing = false;

  constructor(options: LedgerOptions) {
    this.#options = options;
    this.#backlog = new Backlog(options.batchPointsMax);
  }

  get committedSequence(): number {
    return this.#committed;
  }

  get loggedSequence(): number {
    return this.#backlog.lastSequence;
  }

  get status(): WriterStatus {
    return {
      loggedSequence: this.#backlog.lastSequence,
      committedSequence: this.#committed,
      pendingPoints: this.#backlog.points,
      counters: this.#counters,
      finished: this.finished,
      streams: this.streams,
      reconnects: this.reconnects,
      failure: this.failure,
    };
  }

  /** Whether there is nothing more to say to the gateway. */
  get ended(): boolean {
    return this.finished || this.closed;
  }

  /** Whether a record of so many points has room. Throws when the writer takes no more at all. */
  admits(points: number): boolean {
    if (this.failure !== undefined) throw this.failure;
    if (this.closed || this.#finishing) throw closedError();
    return (
      this.#backlog.points === 0 || this.#backlog.points + points <= this.#options.windowPoints
    );
  }

  /**
   * Adds what one log call wrote: one record, or several when it is larger than a batch.
   *
   * @returns whether the sender should look: a block was begun or is complete; and the points whose
   *   key is one too many.
   */
  record(
    step: bigint,
    timeUnixUs: bigint,
    points: Readonly<Record<string, number>>,
    nowMs: number,
  ): { begun: boolean; complete: boolean; rejection: Rejection | undefined } {
    let [begun, complete, refused] = [false, false, 0];
    let firstRefused = "";
    let indexes: number[] = [];
    let values: number[] = [];
    let left = 0; // in the values; those of the record are cut at RECORD_POINTS_MAX
    const keys = Object.keys(points);
    for (const key of keys) {
      const index = this.keys.indexOf(key);
      if (index === undefined) {
        if (refused++ === 0) firstRefused = key;
      } else {
        indexes.push(index);
        values.push(points[key] as number);
      }
      left += 1;
      if (left % RECORD_POINTS_MAX !== 0 && left !== keys.length) continue;
      const block = this.#backlog.push(indexes, values, step, timeUnixUs, nowMs);
      begun ||= block.recordCount === 1;
      complete ||= block.sealed;
      [indexes, values] = [[], []];
    }
    // Up to the watermark: a predecessor has logged it.
    if (this.loggedSequence <= this.#committed) this.#backlog.forget(this.#committed);
    const rejection = refused === 0 ? undefined : this.#exhausted(firstRefused, step, refused);
    return { begun, complete, rejection };
  }

  #exhausted(key: string, step: bigint, points: number): Rejection {
    return {
      reason: "KEYS_EXHAUSTED",
      key,
      step,
      sequence: this.loggedSequence,
      field: "keys",
      detail: `a writer has at most ${KEYS_MAX} keys`,
      points,
    };
  }

  /** From now on the records logged so far do not linger. Returns the last of them. */
  flush(): number {
    this.#flushTo = this.loggedSequence;
    return this.#flushTo;
  }

  /** From now on there are no more records. */
  finish(): void {
    this.#finishing = true;
  }

  /** What to send after the records before `from`. A block that is sent takes no more records. */
  next(from: number, nowMs: number): Next {
    const first = Math.max(from, this.#committed + 1);
    const block = this.#backlog.find(first);
    if (block === undefined) {
      if (!this.#finishing) return { send: "nothing", forMs: Number.POSITIVE_INFINITY };
      // A successor may end with fewer records than are committed already.
      return { send: "finish", lastSequence: Math.max(this.loggedSequence, this.#committed) };
    }
    if (!block.sealed && !this.#finishing && this.#flushTo < block.firstSequence) {
      const forMs = block.startedMs + this.#options.lingerMs - nowMs;
      if (forMs > 0) return { send: "nothing", forMs };
    }
    block.sealed = true;
    return { send: "batch", block, from: Math.max(first, block.firstSequence) };
  }

  /**
   * Takes in the answer to `open`.
   *
   * @returns the record to go on with; with `resync`, when the gateway has lost records that are
   *   forgotten here; and rejections that were not told before.
   */
  opened(opened: Opened): { next: number; resync: boolean; rejections: Rejection[] } {
    this.streams += 1;
    const known = this.#committed;
    const rejections = this.progress(opened);
    const committed = Number(opened.committedSequence);
    return { next: Math.max(known, committed) + 1, resync: committed < known, rejections };
  }

  /** Takes in a watermark and what came with it; returns rejections that were not told before. */
  progress(told: {
    committedSequence: bigint;
    counters?: WriterCounters | undefined;
    rejections?: RejectionMessage[];
  }): Rejection[] {
    // What stands at or below the known watermark came with an earlier ack.
    const fresh = told.rejections?.filter(({ sequence }) => sequence > this.#committed) ?? [];
    this.#committed = Math.max(this.#committed, Number(told.committedSequence));
    this.#counters = countersOf(told.counters);
    this.#backlog.forget(this.#committed);
    return fresh.map(rejectionOf);
  }
}

/** What `log`, `flush` and `finish` say of a writer that its user has ended. */
export function closedError(): HeadraceError {
  return new HeadraceError("WRITER_CLOSED", "the writer was finished or closed");
}

function countersOf(counters?: WriterCounters): Counters {
  return {
    acceptedPoints: Number(counters?.acceptedPoints ?? 0n),
    latePoints: Number(counters?.latePoints ?? 0n),
    repeatedPoints: Number(counters?.repeatedPoints ?? 0n),
    rejectedPoints: Number(counters?.rejectedPoints ?? 0n),
    lostRecords: Number(counters?.lostRecords ?? 0n),
  };
}

function rejectionOf(sample: RejectionMessage): Rejection {
  return {
    reason: reasonOf(sample.reason),
    key: sample.key,
    step: sample.step,
    sequence: Number(sample.sequence),
    field: sample.field,
    detail: sample.detail,
    points: Number(sample.points),
  };
}
