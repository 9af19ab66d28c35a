/** Executes the steps of a scenario, one after the other. */

import { once } from "node:events";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { createInterface, type Interface } from "node:readline";

import {
  type Artifact,
  type Client,
  connect,
  type ConnectOptions,
  HeadraceError,
  type Rejection,
  type Writer,
} from "../src/index.js";
import {
  type LogStep,
  type OpenWriterStep,
  type ReadStep,
  type Scenario,
  spelled,
  type Step,
} from "./steps.js";

type Outcome = Record<string, unknown>;

/** Executes a scenario; returns what the runner's protocol calls the result. */
export async function replay(
  scenario: Scenario,
  address: string,
  directory: string,
  options: ConnectOptions,
): Promise<Outcome> {
  const client = connect(address, options);
  const player = new Player(client, directory);
  const steps: Outcome[] = [];
  for (const [index, step] of scenario.steps.entries()) {
    const started = performance.now();
    const outcome = await player.play(step, index).catch(failed);
    steps.push({ ...outcome, elapsed_ms: performance.now() - started });
  }
  const writers = player.reports();
  player.close();
  return { steps, writers };
}

class Player {
  readonly #writers = new Map<string, { writer: Writer; rejections: Rejection[] }>();
  readonly #input: Interface = createInterface({ input: process.stdin });

  constructor(
    private readonly client: Client,
    private readonly directory: string,
  ) {}

  close(): void {
    this.#input.close();
    this.client.close();
  }

  async play(step: Step, index: number): Promise<Outcome> {
    const { client } = this;
    switch (step.do) {
      case "fault":
        console.log(JSON.stringify({ fault: index }));
        await once(this.#input, "line");
        return {};
      case "create_run": {
        const { created } = await client.createRun({
          runId: step.run_id,
          experiment: step.experiment,
          name: step.name,
          stepPolicy: step.step_policy,
          latePolicy: step.late_policy,
        });
        return { created };
      }
      case "get_run": {
        const { state, attempts } = await client.getRun(step.run_id);
        return {
          state,
          attempts: attempts.map(({ attempt, resumeStep }) => ({
            attempt,
            resume_step: resumeStep === undefined ? null : Number(resumeStep),
          })),
        };
      }
      case "finish_run":
        return { applied: await client.finishRun(step.run_id, step) };
      case "heartbeat_run":
        await client.heartbeatRun(step.run_id);
        return {};
      case "open_writer":
        this.#open(step);
        return {};
      case "log":
        return await this.#log(step);
      case "flush":
        await this.#writer(step.writer).flush({ timeoutMs: step.deadline_ms });
        return {};
      case "finish":
        await this.#writer(step.writer).finish({ timeoutMs: step.deadline_ms });
        return {};
      case "close":
        this.#writer(step.writer).close();
        return {};
      case "read":
        return await this.#read(step);
      case "list_series":
        return await this.#listSeries(step.run_id, step.key_prefix, step.page_size);
      case "upload": {
        const file = join(this.directory, step.file);
        const artifact = await client.uploadArtifact(step.run_id, step.path, file);
        return { ...ofArtifact(artifact), deduplicated: artifact.deduplicated };
      }
      case "download": {
        const file = join(this.directory, step.file);
        return ofArtifact(await client.downloadArtifact(step.run_id, step.path, file));
      }
      case "list_artifacts": {
        const { folder, recursive, page_size: pageSize } = step;
        const entries = await client.listArtifacts(step.run_id, { folder, recursive, pageSize });
        return {
          entries: entries.map((entry) =>
            entry.kind === "artifact" ? entry.artifact.path : `${entry.folder}/`,
          ),
        };
      }
    }
  }

  /** What the writers know in the end. */
  reports(): Outcome {
    return Object.fromEntries(
      Array.from(this.#writers, ([name, { writer, rejections }]) => [
        name,
        report(writer, rejections),
      ]),
    );
  }

  #writer(name: string): Writer {
    const found = this.#writers.get(name);
    if (found === undefined) throw new TypeError(`there is no writer ${name}`);
    return found.writer;
  }

  #open(step: OpenWriterStep): void {
    const rejections: Rejection[] = [];
    const writer = this.client.openWriter({
      runId: step.run_id,
      writerId: step.writer_id,
      incarnation: step.incarnation,
      rank: step.rank,
      attempt: step.attempt,
      resumeStep: step.resume_step,
      resumeExemptKeys: step.resume_exempt_keys,
      batchPointsMax: step.batch_points_max,
      lingerMs: step.linger_ms,
      windowPoints: step.window_points,
      whenFull: step.when_full,
      onRejection: (rejection) => rejections.push(rejection),
    });
    this.#writers.set(step.writer, { writer, rejections });
  }

  async #log(step: LogStep): Promise<Outcome> {
    const writer = this.#writer(step.writer);
    let [logged, refused] = [0, 0];
    let first: unknown;
    for (const [at, values] of records(step)) {
      try {
        await writer.log(at, values);
        logged += 1;
      } catch (error) {
        refused += 1;
        first ??= error;
      }
    }
    return { logged, refused, ...(first === undefined ? {} : failed(first)) };
  }

  async #read(step: ReadStep): Promise<Outcome> {
    const series = await this.client.readMetrics(step.run_id, {
      keys: step.keys,
      ranks: step.ranks,
      rankAggregation: step.rank_aggregation,
      firstStep: step.first_step,
      lastStep: step.last_step,
      stepPolicy: step.step_policy,
      maxPoints: step.max_points,
      includeHidden: step.include_hidden,
    });
    return {
      series: series.map(({ key, rank, steps, values }) => ({
        key,
        rank,
        steps: Array.from(steps, Number),
        values: Array.from(values, spelled),
      })),
    };
  }

  async #listSeries(runId: string, keyPrefix?: string, pageSize?: number): Promise<Outcome> {
    const series = await this.client.listSeries(runId, { keyPrefix, pageSize });
    return {
      series: series.map((one) => ({
        key: one.key,
        rank: one.rank,
        point_count: one.pointCount,
        last_step: Number(one.lastStep),
        last_value: spelled(one.lastValue),
        min_value: spelled(one.minValue),
        max_value: spelled(one.maxValue),
      })),
    };
  }
}

function* records(step: LogStep): Generator<[number, Record<string, number>]> {
  for (const [at, values] of step.points ?? []) {
    const numbers = Object.entries(values).map(([key, value]) => [key, Number(value)] as const);
    yield [at, Object.fromEntries(numbers)];
  }
  const { first_step: firstStep = 0, count = 0, keys = [] } = step;
  const names = Array.isArray(keys) ? keys : Array.from({ length: keys }, (_, k) => `key/${k}`);
  const values: Record<string, number> = {};
  for (let at = firstStep; at < firstStep + count; at++) {
    for (const [index, name] of names.entries()) values[name] = at + index / 8;
    yield [at, values];
  }
}

function failed(error: unknown): Outcome {
  if (error instanceof HeadraceError) return { error: error.reason ?? error.code };
  return { error: String(error) };
}

function ofArtifact({ size, digest }: Artifact): Outcome {
  return { size, digest: Buffer.from(digest).toString("hex") };
}

function report({ status }: Writer, rejections: readonly Rejection[]): Outcome {
  const { counters, failure } = status;
  return {
    committed_sequence: status.committedSequence,
    counters: {
      accepted_points: counters.acceptedPoints,
      late_points: counters.latePoints,
      repeated_points: counters.repeatedPoints,
      rejected_points: counters.rejectedPoints,
      lost_records: counters.lostRecords,
    },
    rejections: rejections.map(({ reason, key, step, points }) => ({
      reason,
      key,
      step: Number(step),
      points,
    })),
    error: failure === undefined ? null : (failure.reason ?? failure.code),
    finished: status.finished,
    streams: status.streams,
    reconnects: status.reconnects,
    refused_points: 0,
  };
}
