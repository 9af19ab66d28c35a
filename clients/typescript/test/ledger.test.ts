import assert from "node:assert/strict";
import { test } from "node:test";

import { create } from "@bufbuild/protobuf";

import { Ledger } from "../src/ledger.js";
import { AckSchema, ErrorReason, OpenedSchema } from "../src/v1.js";

const OPTIONS = { batchPointsMax: 10, lingerMs: 50, windowPoints: 20 };

function log(ledger: Ledger, records: number, nowMs = 0): void {
  for (let record = 0; record < records; record++) ledger.record(0n, 0n, { a: 1, b: 2 }, nowMs);
}

test("a record waits for company, but no longer than it lingers", () => {
  const ledger = new Ledger(OPTIONS);
  log(ledger, 1, 1_000);
  assert.deepEqual(ledger.next(1, 1_020), { send: "nothing", forMs: 30 });
  assert.equal(ledger.next(1, 1_050).send, "batch");
});

test("neither a full batch nor a flushed record lingers", () => {
  const full = new Ledger(OPTIONS);
  log(full, 5);
  assert.equal(full.next(1, 0).send, "batch");
  const flushed = new Ledger(OPTIONS);
  log(flushed, 1);
  flushed.flush();
  assert.equal(flushed.next(1, 0).send, "batch");
});

test("what is sent takes no more records", () => {
  const ledger = new Ledger(OPTIONS);
  log(ledger, 1);
  ledger.flush();
  const sent = ledger.next(1, 0);
  log(ledger, 1);
  assert.ok(sent.send === "batch");
  assert.equal(sent.block.recordCount, 1);
});

test("a record enters while the window has room or is empty", () => {
  const ledger = new Ledger(OPTIONS);
  assert.ok(ledger.admits(1_000));
  log(ledger, 9);
  assert.ok(ledger.admits(2));
  assert.ok(!ledger.admits(3));
  ledger.progress(create(AckSchema, { committedSequence: 1n }));
  assert.ok(ledger.admits(3));
});

test("the end comes after the last record, and names it", () => {
  const ledger = new Ledger(OPTIONS);
  log(ledger, 2);
  ledger.finish();
  assert.equal(ledger.next(1, 0).send, "batch");
  assert.deepEqual(ledger.next(3, 0), { send: "finish", lastSequence: 2 });
  assert.throws(() => ledger.admits(1), { code: "WRITER_CLOSED" });
});

test("records up to the watermark are taken as logged before", () => {
  const ledger = new Ledger(OPTIONS);
  const { next } = ledger.opened(create(OpenedSchema, { committedSequence: 3n }));
  log(ledger, 3);
  assert.equal(ledger.status.pendingPoints, 0);
  log(ledger, 1);
  ledger.flush();
  const sent = ledger.next(next, 0);
  assert.ok(sent.send === "batch");
  assert.equal(sent.from, 4);
});

test("a successor that logs less ends with what is committed", () => {
  const ledger = new Ledger(OPTIONS);
  const { next } = ledger.opened(create(OpenedSchema, { committedSequence: 3n }));
  ledger.finish();
  assert.deepEqual(ledger.next(next, 0), { send: "finish", lastSequence: 3 });
});

test("a watermark below what was forgotten asks for a resync", () => {
  const ledger = new Ledger(OPTIONS);
  log(ledger, 5);
  ledger.progress(create(AckSchema, { committedSequence: 4n }));
  const { next, resync } = ledger.opened(create(OpenedSchema, { committedSequence: 2n }));
  assert.deepEqual([next, resync], [5, true]);
});

test("a rejection that is told again is not delivered again", () => {
  const ledger = new Ledger(OPTIONS);
  const rejections = [{ reason: ErrorReason.STEP_LATE, key: "a", sequence: 2n, points: 1n }];
  const first = ledger.progress(create(AckSchema, { committedSequence: 2n, rejections }));
  assert.equal(first[0]?.reason, "STEP_LATE");
  const again = ledger.opened(create(OpenedSchema, { committedSequence: 2n, rejections }));
  assert.deepEqual(again.rejections, []);
});

test("a record of more points than a batch holds is several records", () => {
  const ledger = new Ledger({ ...OPTIONS, batchPointsMax: 8_192 });
  const keys = Array.from({ length: 20_000 }, (_, index) => [`key/${index}`, 1] as const);
  ledger.record(0n, 0n, Object.fromEntries(keys), 0);
  assert.equal(ledger.loggedSequence, 3);
  assert.equal(ledger.status.pendingPoints, 20_000);
});

test("points of a key too many are reported, and the others logged", () => {
  const ledger = new Ledger({ ...OPTIONS, batchPointsMax: 8_192 });
  const keys = Array.from({ length: 100_000 }, (_, index) => [`key/${index}`, 1] as const);
  ledger.record(0n, 0n, Object.fromEntries(keys), 0);
  const { rejection } = ledger.record(7n, 0n, { "key/1": 1, more: 2, "and more": 3 }, 0);
  assert.deepEqual(
    [rejection?.reason, rejection?.key, rejection?.step, rejection?.points],
    ["KEYS_EXHAUSTED", "more", 7n, 2],
  );
  assert.equal(ledger.status.pendingPoints, 100_001);
});
