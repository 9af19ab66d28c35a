/** The records that are logged and not acknowledged, as columns. Pure. */

import { encodeBatch, type PointColumns } from "./columns.js";

/** Points of a batch, and a record fits a batch. */
export const RECORD_POINTS_MAX = 8_192;

const BLOCK_POINTS_MIN = 64;

/** Consecutive records: what becomes one batch, or, after a resume in its middle, the rest of one. */
export class Block {
  /** Takes no more records. */
  sealed = false;
  /** Of its records that are acknowledged. */
  acknowledgedPoints = 0;
  readonly #ends: number[] = []; // how many points the records up to each have
  #columns: PointColumns;

  constructor(
    readonly firstSequence: number,
    /** When its first record was logged, in milliseconds. */
    readonly startedMs: number,
    capacity: number,
  ) {
    this.#columns = emptyColumns(capacity);
  }

  /** Of its records. */
  get points(): number {
    return this.#ends.at(-1) ?? 0;
  }

  get recordCount(): number {
    return this.#ends.length;
  }

  get lastSequence(): number {
    return this.firstSequence + this.#ends.length - 1;
  }

  /** Adds a record: `indexes[i]` has the value `values[i]`. */
  push(indexes: readonly number[], values: readonly number[], step: bigint, time: bigint): void {
    const start = this.points;
    const end = start + indexes.length;
    if (end > this.#columns.value.length) this.#columns = grown(this.#columns, end);
    const { seriesIndex, step: steps, timeUnixUs, value } = this.#columns;
    seriesIndex.set(indexes, start);
    value.set(values, start);
    steps.fill(step, start, end);
    timeUnixUs.fill(time, start, end);
    this.#ends.push(end);
  }

  /** How many points stand before the record. */
  pointsBefore(sequence: number): number {
    return this.#ends[sequence - this.firstSequence - 1] ?? 0;
  }

  /** Encodes the records from `sequence` on as one message. */
  encodeFrom(sequence: number): Uint8Array {
    const start = this.pointsBefore(sequence);
    const end = this.points;
    return encodeBatch(sequence, this.lastSequence - sequence + 1, {
      seriesIndex: this.#columns.seriesIndex.subarray(start, end),
      step: this.#columns.step.subarray(start, end),
      timeUnixUs: this.#columns.timeUnixUs.subarray(start, end),
      value: this.#columns.value.subarray(start, end),
    });
  }
}

/** Blocks in the order of their records. */
export class Backlog {
  /** Of the last record logged. */
  lastSequence = 0;
  /** Logged and not acknowledged. */
  points = 0;
  readonly #blocks: Block[] = [];

  constructor(readonly batchPointsMax: number) {}

  /** Adds a record of at most RECORD_POINTS_MAX points; returns its block. */
  push(
    indexes: readonly number[],
    values: readonly number[],
    step: bigint,
    time: bigint,
    nowMs: number,
  ): Block {
    const block = this.#blockFor(indexes.length, nowMs);
    block.push(indexes, values, step, time);
    block.sealed ||= block.points >= this.batchPointsMax;
    this.points += indexes.length;
    this.lastSequence += 1;
    return block;
  }

  #blockFor(points: number, nowMs: number): Block {
    const last = this.#blocks.at(-1);
    if (last !== undefined) {
      last.sealed ||= last.points + points > this.batchPointsMax;
      if (!last.sealed) return last;
    }
    // As large as the one before became: a writer that logs little needs no large blocks.
    const capacity = Math.max(points, last?.points ?? BLOCK_POINTS_MIN);
    const fresh = new Block(this.lastSequence + 1, nowMs, capacity);
    this.#blocks.push(fresh);
    return fresh;
  }

  /** Drops the records up to `committed`. */
  forget(committed: number): void {
    let done = 0;
    for (const block of this.#blocks) {
      if (committed < block.firstSequence) break;
      const acknowledged = block.pointsBefore(Math.min(committed, block.lastSequence) + 1);
      this.points -= acknowledged - block.acknowledgedPoints;
      block.acknowledgedPoints = acknowledged;
      if (committed < block.lastSequence) break;
      done += 1;
    }
    this.#blocks.splice(0, done);
  }

  /** Returns the block with the record; undefined when there is none yet. */
  find(sequence: number): Block | undefined {
    let [low, high] = [0, this.#blocks.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#blocks[middle] as Block).lastSequence < sequence) low = middle + 1;
      else high = middle;
    }
    return this.#blocks[low];
  }
}

function emptyColumns(capacity: number): PointColumns {
  return {
    seriesIndex: new Uint32Array(capacity),
    step: new BigInt64Array(capacity),
    timeUnixUs: new BigInt64Array(capacity),
    value: new Float64Array(capacity),
  };
}

function grown(columns: PointColumns, points: number): PointColumns {
  const larger = emptyColumns(Math.max(points, columns.value.length * 2));
  larger.seriesIndex.set(columns.seriesIndex);
  larger.step.set(columns.step);
  larger.timeUnixUs.set(columns.timeUnixUs);
  larger.value.set(columns.value);
  return larger;
}
