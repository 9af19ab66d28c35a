/** What can fail, and what the contract says to do then. */

import { fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { type Metadata, status } from "@grpc/grpc-js";

import { ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "./gen/google/rpc/status_pb.js";
import { ErrorReason } from "./gen/headrace/v1/error_reason_pb.js";

/**
 * Why a call failed or a point was rejected: an `ErrorReason` of the contract, for example
 * `"RUN_NOT_FOUND"`. All are documented in `protos/headrace/v1/error_reason.proto`.
 */
export type Reason = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;

/**
 * What kind of failure it is: the gRPC status, or one of the client's own.
 *
 * - `"DEADLINE_EXCEEDED"`: the call did not end within its `timeoutMs`.
 * - `"WINDOW_FULL"`: `log` found the window full, and was told to fail then.
 * - `"WRITER_CLOSED"`: the writer was finished or closed by its user.
 */
export type Code = keyof typeof status | "WINDOW_FULL" | "WRITER_CLOSED";

/** What a {@link HeadraceError} says besides its code and message. */
export interface ErrorDetails {
  reason?: Reason | undefined;
  metadata?: Readonly<Record<string, string>>;
  retryAfterMs?: number;
}

/** A failure that the gateway reported, a call that did not reach it, or the writer's refusal. */
export class HeadraceError extends Error {
  override readonly name = "HeadraceError";
  /** The gRPC status, or a failure of the client's own. */
  readonly code: Code;
  /** Absent when the failure carried none that this version knows. */
  readonly reason: Reason | undefined;
  /** The offending `field`, `value` and `limit`, where they apply. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The least wait that the gateway asks for, in milliseconds. */
  readonly retryAfterMs: number;

  constructor(code: Code, message: string, details: ErrorDetails = {}) {
    super(`${details.reason ?? code}: ${message}`);
    this.code = code;
    this.reason = details.reason;
    this.metadata = details.metadata ?? {};
    this.retryAfterMs = details.retryAfterMs ?? 0;
  }
}

/** The name of a reason; absent for one that this version does not know. */
export function reasonOf(value: ErrorReason): Reason | undefined {
  const name = ErrorReason[value] as string | undefined; // a newer gateway may know more
  return name === undefined ? undefined : reasonNamed(name);
}

function reasonNamed(name: string): Reason | undefined {
  const value = (ErrorReason as Readonly<Record<string, unknown>>)[name];
  return name !== "UNSPECIFIED" && typeof value === "number" ? (name as Reason) : undefined;
}

/** The part of a response that the contract promises. */
export function present<Value>(value: Value | undefined, name: string): Value {
  if (value === undefined) throw new HeadraceError("INTERNAL", `the response has no ${name}`);
  return value;
}

/** Turns what gRPC reports into a {@link HeadraceError}; other errors stay what they are. */
export function errorOf(error: unknown): unknown {
  return isStatus(error) ? failureOf(error) : error;
}

interface Status {
  code: number;
  details: string;
  metadata: Metadata;
}

function isStatus(error: unknown): error is Status {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}

function failureOf({ code, details, metadata }: Status): HeadraceError {
  const name = (status[code] ?? "UNKNOWN") as keyof typeof status;
  const [encoded] = metadata.get("grpc-status-details-bin");
  if (!Buffer.isBuffer(encoded)) return new HeadraceError(name, details);
  const found: ErrorDetails = {};
  for (const detail of fromBinary(StatusSchema, encoded).details) {
    const info = anyUnpack(detail, ErrorInfoSchema);
    if (info !== undefined) {
      found.reason = reasonNamed(info.reason);
      found.metadata = info.metadata;
    }
    const delay = anyUnpack(detail, RetryInfoSchema)?.retryDelay;
    if (delay !== undefined) {
      found.retryAfterMs = Number(delay.seconds) * 1_000 + delay.nanos / 1e6;
    }
  }
  return new HeadraceError(name, details, found);
}

/**
 * What a client does after a failure: give up; reopen and continue, which is a defect if it recurs
 * without progress; or the same after a wait, for as long as it lives.
 */
export type Remedy = "never" | "resume" | "later";

const RESUMED: ReadonlySet<Reason> = new Set([
  "SEQUENCE_GAP",
  "UNKNOWN_KEY_INDEX",
  "TRANSFER_STALLED",
  "DIGEST_MISMATCH",
  "UPLOAD_NOT_FOUND",
  "UPLOAD_INCOMPLETE",
]);

const RETRIED: ReadonlySet<Reason> = new Set([
  "OVERLOADED",
  "STORE_UNAVAILABLE",
  "DRAINING",
  "INTERNAL",
  "BLOB_STORE_UNAVAILABLE",
]);

/** Statuses that, without a reason, come from what stands between the client and the gateway. */
const RETRIED_CODES: ReadonlySet<Code> = new Set([
  "UNAVAILABLE",
  "UNKNOWN",
  "INTERNAL",
  "CANCELLED",
  "ABORTED",
  "DEADLINE_EXCEEDED",
  "RESOURCE_EXHAUSTED",
]);

/** What the contract says to do after `failure`. */
export function remedyFor({ code, reason }: HeadraceError): Remedy {
  if (reason === undefined) return RETRIED_CODES.has(code) ? "later" : "never";
  if (RESUMED.has(reason)) return "resume";
  return RETRIED.has(reason) ? "later" : "never";
}
