/** The steps of scenarios, as clients/scenarios/README.md describes them. */

import type { FinishRunOptions, LatePolicy, RankAggregation, StepPolicy } from "../src/index.js";

export interface Scenario {
  steps: Step[];
}

export type Step =
  | {
      do: "create_run";
      run_id: string;
      experiment?: string;
      name?: string;
      step_policy?: StepPolicy;
      late_policy?: LatePolicy;
    }
  | { do: "get_run" | "heartbeat_run"; run_id: string }
  | {
      do: "finish_run";
      run_id: string;
      attempt?: number;
      state?: NonNullable<FinishRunOptions["state"]>;
    }
  | OpenWriterStep
  | LogStep
  | { do: "flush" | "finish"; writer: string; deadline_ms?: number }
  | { do: "close"; writer: string }
  | ReadStep
  | { do: "list_series"; run_id: string; key_prefix?: string; page_size?: number }
  | { do: "upload" | "download"; run_id: string; path: string; file: string }
  | {
      do: "list_artifacts";
      run_id: string;
      folder?: string;
      recursive?: boolean;
      page_size?: number;
    }
  | { do: "fault" };

export interface OpenWriterStep {
  do: "open_writer";
  writer: string;
  run_id: string;
  writer_id: string;
  incarnation: string;
  rank?: number;
  attempt?: number;
  resume_step?: number;
  resume_exempt_keys?: string[];
  batch_points_max?: number;
  linger_ms?: number;
  window_points?: number;
  when_full?: "block" | "error";
}

export interface LogStep {
  do: "log";
  writer: string;
  points?: [number, Record<string, number | string>][];
  first_step?: number;
  count?: number;
  keys?: string[] | number;
}

export interface ReadStep {
  do: "read";
  run_id: string;
  keys?: string[];
  ranks?: number[];
  rank_aggregation?: RankAggregation;
  first_step?: number;
  last_step?: number;
  step_policy?: StepPolicy;
  max_points?: number;
  include_hidden?: boolean;
}

/** A number as JSON has it: NaN and infinities by their names, which `Number` reads. */
export function spelled(value: number): number | string {
  return Number.isFinite(value) ? value : String(value);
}
