/** Reading points as columns, and listing series. */

import { decodeColumns, joined, type SeriesPiece } from "./columns.js";
import type { Connection } from "./connection.js";
import {
  MetricService,
  RankAggregation as RankAggregationValue,
} from "./gen/headrace/v1/metric_service_pb.js";
import { StepPolicy as StepPolicyValue } from "./gen/headrace/v1/run_service_pb.js";
import type { StepPolicy } from "./runs.js";

/** How the ranks of one key become one series. */
export type RankAggregation = Exclude<keyof typeof RankAggregationValue, "UNSPECIFIED">;

/** What to read; absent fields restrict nothing. */
export interface ReadOptions {
  keys?: string[];
  ranks?: number[];
  /** Aggregates over the ranks, step by step. Default: each rank is a series of its own. */
  rankAggregation?: RankAggregation;
  /** Inclusive. */
  firstStep?: number | bigint;
  /** Inclusive. */
  lastStep?: number | bigint;
  /** Default: the run's. */
  stepPolicy?: StepPolicy;
  /** Of each series, chosen so that ends and extremes survive; default all. */
  maxPoints?: number;
  /** Points of earlier attempts that later ones hide, too. */
  includeHidden?: boolean;
}

/** The points of one series, ascending in step: element i of each column describes point i. */
export interface Columns {
  readonly key: string;
  /** -1 when aggregated over ranks. */
  readonly rank: number;
  /** Only with `includeHidden`, otherwise 0. */
  readonly attempt: number;
  readonly steps: BigInt64Array;
  /** Microseconds since 1970-01-01 UTC. */
  readonly timeUnixUs: BigInt64Array;
  readonly values: Float64Array;
}

/** A series and the summary of its visible points. */
export interface Series {
  readonly key: string;
  readonly rank: number;
  /** Repeats of a step included. */
  readonly pointCount: number;
  readonly lastStep: bigint;
  readonly lastTimeUnixUs: bigint;
  readonly lastValue: number;
  /** NaN ignored; NaN if all are. */
  readonly minValue: number;
  /** Likewise. */
  readonly maxValue: number;
}

/** Which series to list. */
export interface ListSeriesOptions {
  /** Only keys that begin with it. */
  keyPrefix?: string;
  /** Of one call to the gateway. */
  pageSize?: number;
}

/** Reads points of a run from one consistent snapshot, ordered by key and rank. */
export async function readMetrics(
  connection: Connection,
  runId: string,
  options: ReadOptions,
  signal: AbortSignal,
): Promise<Columns[]> {
  const { firstStep, lastStep, rankAggregation, stepPolicy, ...rest } = options;
  const request = {
    ...rest,
    runId,
    firstStep: firstStep === undefined ? undefined : BigInt(firstStep),
    lastStep: lastStep === undefined ? undefined : BigInt(lastStep),
    rankAggregation: RankAggregationValue[rankAggregation ?? "UNSPECIFIED"],
    stepPolicy: StepPolicyValue[stepPolicy ?? "UNSPECIFIED"],
  };
  const { readMetrics: method } = MetricService.method;
  const series: SeriesPiece[] = [];
  for await (const piece of connection.serverStreaming(method, request, signal, decodeColumns)) {
    if (piece === undefined) continue;
    const last = series.at(-1);
    if (last !== undefined && sameSeries(last, piece)) {
      last.steps.push(...piece.steps);
      last.times.push(...piece.times);
      last.values.push(...piece.values);
    } else {
      series.push(piece);
    }
  }
  return series.map(columnsOf);
}

function sameSeries(one: SeriesPiece, other: SeriesPiece): boolean {
  return one.key === other.key && one.rank === other.rank && one.attempt === other.attempt;
}

function columnsOf({ key, rank, attempt, steps, times, values }: SeriesPiece): Columns {
  return {
    key,
    rank,
    attempt,
    steps: new BigInt64Array(joined(steps)),
    timeUnixUs: new BigInt64Array(joined(times)),
    values: new Float64Array(joined(values)),
  };
}

/** Lists the series of a run, ordered by key and rank; all pages. */
export async function listSeries(
  connection: Connection,
  runId: string,
  options: ListSeriesOptions,
  signal: AbortSignal,
): Promise<Series[]> {
  const series: Series[] = [];
  let pageToken = "";
  do {
    const request = { ...options, runId, pageToken };
    const page = await connection.unary(MetricService.method.listSeries, request, signal);
    for (const one of page.series) {
      series.push({
        key: one.key,
        rank: one.rank,
        pointCount: Number(one.pointCount),
        lastStep: one.lastStep,
        lastTimeUnixUs: one.lastTimeUnixUs,
        lastValue: one.lastValue,
        minValue: one.minValue,
        maxValue: one.maxValue,
      });
    }
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return series;
}
