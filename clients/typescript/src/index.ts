/**
 * Writes training metrics to a Headrace gateway, exactly once, reads them back as columns, and
 * moves artifacts.
 *
 * `Writer.log` does not wait for the gateway: the writer batches, sends, and, when the connection
 * or the gateway is gone, tries again for as long as it lives. What `flush` and `finish` have
 * confirmed is committed.
 *
 * What counts or sizes something is a `number`; steps and times that are read are `bigint`s.
 *
 * @module
 */
export type { Artifact, ArtifactEntry, ListArtifactsOptions } from "./artifacts.js";
export { Client, connect, DEFAULT_ADDRESS } from "./client.js";
export type { ConnectOptions } from "./connection.js";
export type { CallOptions } from "./deadline.js";
export { type Code, type ErrorDetails, HeadraceError, type Reason } from "./errors.js";
export { newId } from "./identifiers.js";
export type { Counters, Rejection, WriterStatus } from "./ledger.js";
export type {
  Columns,
  ListSeriesOptions,
  RankAggregation,
  ReadOptions,
  Series,
} from "./reading.js";
export type {
  Attempt,
  FinishRunOptions,
  LatePolicy,
  Run,
  RunOptions,
  RunState,
  StepPolicy,
} from "./runs.js";
export type { UploadedArtifact, UploadOptions } from "./uploads.js";
export { Writer, type WriterOptions } from "./writer.js";
