import assert from "node:assert/strict";
import { test } from "node:test";

import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { Metadata, status } from "@grpc/grpc-js";

import { Backoff } from "../src/backoff.js";
import { errorOf, HeadraceError, type Reason, reasonOf, remedyFor } from "../src/errors.js";
import { ErrorInfoSchema, RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "../src/gen/google/rpc/status_pb.js";
import { ErrorReason } from "../src/v1.js";

const RESUMED = new Set([
  "SEQUENCE_GAP",
  "UNKNOWN_KEY_INDEX",
  "TRANSFER_STALLED",
  "DIGEST_MISMATCH",
  "UPLOAD_NOT_FOUND",
  "UPLOAD_INCOMPLETE",
]);
const RETRIED = new Set([
  "OVERLOADED",
  "STORE_UNAVAILABLE",
  "DRAINING",
  "INTERNAL",
  "BLOB_STORE_UNAVAILABLE",
]);

function grpcError(code: number, details: string, encoded?: Uint8Array): Error {
  const metadata = new Metadata();
  if (encoded !== undefined) metadata.set("grpc-status-details-bin", Buffer.from(encoded));
  return Object.assign(new Error(details), { code, details, metadata });
}

/** A status with these details. */
function statusWith(
  info: MessageInitShape<typeof ErrorInfoSchema>,
  retry: MessageInitShape<typeof RetryInfoSchema> = {},
): Uint8Array {
  const details = [
    anyPack(ErrorInfoSchema, create(ErrorInfoSchema, info)),
    anyPack(RetryInfoSchema, create(RetryInfoSchema, retry)),
  ];
  return toBinary(StatusSchema, create(StatusSchema, { details }));
}

test("a gateway's failure carries its reason, metadata and wait", () => {
  const info = { reason: "OVERLOADED", metadata: { limit: "5" } };
  const encoded = statusWith(info, { retryDelay: { seconds: 2n, nanos: 5e8 } });
  const error = errorOf(grpcError(status.UNAVAILABLE, "busy", encoded));
  assert.ok(error instanceof HeadraceError);
  assert.deepEqual(
    [error.code, error.reason, error.metadata, error.retryAfterMs, error.message],
    ["UNAVAILABLE", "OVERLOADED", { limit: "5" }, 2_500, "OVERLOADED: busy"],
  );
});

test("a failure without details has its status", () => {
  const error = errorOf(grpcError(status.UNAVAILABLE, "no connection"));
  assert.ok(error instanceof HeadraceError);
  assert.deepEqual([error.code, error.reason], ["UNAVAILABLE", undefined]);
});

test("what is no failure of gRPC stays what it is", () => {
  const error = Object.assign(new Error("no such file"), { code: "ENOENT" });
  assert.equal(errorOf(error), error);
});

test("every reason of the contract has its remedy", () => {
  for (const value of Object.values(ErrorReason)) {
    if (typeof value === "string" || value === ErrorReason.UNSPECIFIED) continue;
    const reason = reasonOf(value);
    assert.ok(reason !== undefined);
    const expected = RESUMED.has(reason) ? "resume" : RETRIED.has(reason) ? "later" : "never";
    assert.equal(remedyFor(new HeadraceError("UNAVAILABLE", "", { reason })), expected, reason);
  }
});

test("a reason of a newer gateway is none, and its status says what to do", () => {
  for (const reason of ["UNSPECIFIED", "OF_A_NEWER_GATEWAY", "5", "constructor"]) {
    const error = errorOf(grpcError(status.UNAVAILABLE, "", statusWith({ reason })));
    assert.ok(error instanceof HeadraceError);
    assert.equal(error.reason, undefined, reason);
    assert.equal(remedyFor(error), "later");
  }
});

test("waits grow, stay below their limit, and keep to the gateway's", () => {
  const backoff = new Backoff();
  const unavailable = new HeadraceError("UNAVAILABLE", "");
  const waits = Array.from({ length: 100 }, () => backoff.next(unavailable) ?? Number.NaN);
  assert.ok((waits[0] as number) <= 100);
  assert.ok(waits.every((wait) => wait >= 50 && wait <= 5_000));
  assert.ok((waits[50] as number) >= 2_500);
  const patient = new HeadraceError("UNAVAILABLE", "", {
    reason: "OVERLOADED",
    retryAfterMs: 60_000,
  });
  assert.equal(backoff.next(patient), 60_000);
});

test("failures that resuming does not cure end", () => {
  const backoff = new Backoff();
  const gap = new HeadraceError("INVALID_ARGUMENT", "", { reason: "SEQUENCE_GAP" });
  for (let attempt = 0; attempt < 5; attempt++) assert.ok(backoff.next(gap) !== undefined);
  assert.equal(backoff.next(gap), undefined);
  backoff.progress();
  assert.ok(backoff.next(gap) !== undefined);
});

test("what the contract marks never is not tried again", () => {
  const final: [HeadraceError["code"], Reason?][] = [
    ["ABORTED", "WRITER_FENCED"],
    ["UNAUTHENTICATED", "UNAUTHENTICATED"],
    ["UNIMPLEMENTED"],
  ];
  for (const [code, reason] of final) {
    assert.equal(new Backoff().next(new HeadraceError(code, "", { reason })), undefined, code);
  }
});
