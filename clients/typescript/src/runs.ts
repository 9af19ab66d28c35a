/** Runs: creating, reading and ending them. */

import { timestampDate } from "@bufbuild/protobuf/wkt";

import type { Connection } from "./connection.js";
import { present } from "./errors.js";
import {
  LatePolicy as LatePolicyValue,
  type Run as RunMessage,
  RunService,
  RunState as RunStateValue,
  StepPolicy as StepPolicyValue,
} from "./gen/headrace/v1/run_service_pb.js";
import { newId } from "./identifiers.js";

/** What a run's job is doing. */
export type RunState = Exclude<keyof typeof RunStateValue, "UNSPECIFIED">;

/** Which of several points of one series at one step a read returns. */
export type StepPolicy = Exclude<keyof typeof StepPolicyValue, "UNSPECIFIED">;

/** What happens to a point whose step is at or below the greatest one of its series. */
export type LatePolicy = Exclude<keyof typeof LatePolicyValue, "UNSPECIFIED">;

/** A run to be created. All fields have defaults. */
export interface RunOptions {
  /** 32 lower-case hex digits; default a new one. */
  runId?: string;
  /** Default `Default`. */
  experiment?: string;
  /** For people; default a readable one. */
  name?: string;
  /** Default `"LAST"`. */
  stepPolicy?: StepPolicy;
  /** Default `"ACCEPT"`. */
  latePolicy?: LatePolicy;
}

/** How a run ended. */
export interface FinishRunOptions {
  /** The attempt that ended, from 1; default 1. */
  attempt?: number;
  /** Default `"FINISHED"`. */
  state?: "FINISHED" | "FAILED" | "KILLED";
}

/** One (re)start of a run's job. */
export interface Attempt {
  /** From 1. */
  readonly attempt: number;
  /** The first step it computes anew; absent: it hides nothing. */
  readonly resumeStep: bigint | undefined;
  /** When the gateway first heard of it. */
  readonly startTime: Date | undefined;
}

/** One training job, through all its attempts and ranks. */
export interface Run {
  /** 32 lower-case hex digits. */
  readonly runId: string;
  readonly experiment: string;
  readonly name: string;
  readonly state: RunState;
  readonly stepPolicy: StepPolicy;
  readonly latePolicy: LatePolicy;
  readonly createTime: Date | undefined;
  /** Absent while it runs. */
  readonly endTime: Date | undefined;
  /** Ascending. */
  readonly attempts: readonly Attempt[];
}

/** Creates a run, or finds the one that has this id. */
export async function createRun(
  connection: Connection,
  options: RunOptions,
  signal: AbortSignal,
): Promise<Run & { readonly created: boolean }> {
  const { runId = newId(), stepPolicy, latePolicy } = options;
  const response = await connection.unary(
    RunService.method.createRun,
    {
      runId,
      experiment: options.experiment,
      name: options.name,
      stepPolicy: StepPolicyValue[stepPolicy ?? "UNSPECIFIED"],
      latePolicy: LatePolicyValue[latePolicy ?? "UNSPECIFIED"],
    },
    signal,
  );
  return { ...runOf(response.run), created: response.created };
}

/** Reads a run. */
export async function getRun(
  connection: Connection,
  runId: string,
  signal: AbortSignal,
): Promise<Run> {
  return runOf((await connection.unary(RunService.method.getRun, { runId }, signal)).run);
}

/** Ends a run; false when a newer attempt exists. */
export async function finishRun(
  connection: Connection,
  runId: string,
  options: FinishRunOptions,
  signal: AbortSignal,
): Promise<boolean> {
  const { attempt, state } = options;
  const request = { runId, attempt, state: RunStateValue[state ?? "UNSPECIFIED"] };
  return (await connection.unary(RunService.method.finishRun, request, signal)).applied;
}

/** Says that a run's job is alive. */
export async function heartbeatRun(
  connection: Connection,
  runId: string,
  signal: AbortSignal,
): Promise<void> {
  await connection.unary(RunService.method.heartbeatRun, { runId }, signal);
}

function runOf(message: RunMessage | undefined): Run {
  const run = present(message, "run");
  return {
    runId: run.runId,
    experiment: run.experiment,
    name: run.name,
    state: RunStateValue[run.state] as RunState,
    stepPolicy: StepPolicyValue[run.stepPolicy] as StepPolicy,
    latePolicy: LatePolicyValue[run.latePolicy] as LatePolicy,
    createTime: run.createTime && timestampDate(run.createTime),
    endTime: run.endTime && timestampDate(run.endTime),
    attempts: run.attempts.map(({ attempt, resumeStep, startTime }) => ({
      attempt,
      resumeStep,
      startTime: startTime && timestampDate(startTime),
    })),
  };
}
