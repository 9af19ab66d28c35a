import assert from "node:assert/strict";
import { test } from "node:test";

import { fromBinary } from "@bufbuild/protobuf";

import { Backlog } from "../src/backlog.js";
import { type MetricBatch, WriteMetricsRequestSchema } from "../src/v1.js";

function log(backlog: Backlog, records: number, points: number): void {
  const indexes = Array.from({ length: points }, (_, index) => index);
  for (let record = 0; record < records; record++) {
    const step = BigInt(backlog.lastSequence + 1);
    backlog.push(indexes, indexes, step, 0n, 0);
  }
}

function batchFrom(backlog: Backlog, sequence: number): MetricBatch {
  const block = backlog.find(sequence);
  assert.ok(block !== undefined);
  const { message } = fromBinary(WriteMetricsRequestSchema, block.encodeFrom(sequence));
  assert.equal(message.case, "batch");
  return message.value;
}

test("a resume in the middle of a block sends the rest of it", () => {
  const backlog = new Backlog(100);
  log(backlog, 10, 3);
  backlog.forget(4);
  assert.equal(backlog.points, 18);
  const batch = batchFrom(backlog, 5);
  assert.deepEqual([batch.firstSequence, batch.recordCount], [5n, 6]);
  assert.deepEqual(
    batch.step,
    [5n, 6n, 7n, 8n, 9n, 10n].flatMap((step) => [step, step, step]),
  );
  assert.deepEqual(batch.value.slice(0, 4), [0, 1, 2, 0]);
});

test("a record never straddles two blocks", () => {
  const backlog = new Backlog(10);
  log(backlog, 4, 7);
  log(backlog, 1, 8_000);
  assert.equal(batchFrom(backlog, 2).value.length, 7);
  assert.equal(batchFrom(backlog, 5).value.length, 8_000);
});

test("a block that grows keeps its points", () => {
  const backlog = new Backlog(4_096);
  log(backlog, 300, 5);
  const batch = batchFrom(backlog, 1);
  assert.equal(batch.value.length, 1_500);
  assert.deepEqual(batch.step.slice(-6), [299n, 300n, 300n, 300n, 300n, 300n]);
});

test("forgetting everything leaves nothing", () => {
  const backlog = new Backlog(10);
  log(backlog, 9, 4);
  backlog.forget(20);
  assert.equal(backlog.points, 0);
  assert.equal(backlog.find(10), undefined);
});
