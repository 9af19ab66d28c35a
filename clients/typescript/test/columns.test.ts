import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { create, fromBinary, fromJson, type JsonValue, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";

import { decodeColumns, encodeBatch, joined } from "../src/columns.js";
import {
  type MetricBatch,
  MetricBatchSchema,
  ReadMetricsResponseSchema,
  SeriesColumnsSchema,
  WriteMetricsRequestSchema,
} from "../src/v1.js";

const VECTORS = new URL("../../../scenarios/wire/vectors.json", import.meta.url);

function encode(batch: MetricBatch): Uint8Array {
  return encodeBatch(batch.firstSequence, batch.recordCount, {
    seriesIndex: Uint32Array.from(batch.seriesIndex),
    step: BigInt64Array.from(batch.step),
    timeUnixUs: BigInt64Array.from(batch.timeUnixUs),
    value: Float64Array.from(batch.value),
  });
}

test("a batch is decoded by the generated code as what was encoded", async () => {
  const vectors = JSON.parse(await readFile(VECTORS, "utf8")) as { message: JsonValue }[];
  let batches = 0;
  for (const vector of vectors) {
    const request = fromJson(WriteMetricsRequestSchema, vector.message);
    if (request.message.case !== "batch") continue;
    batches += 1;
    assert.deepEqual(fromBinary(WriteMetricsRequestSchema, encode(request.message.value)), request);
  }
  assert.ok(batches > 2);
});

test("a slice of a column is encoded without its neighbours", () => {
  const all = {
    seriesIndex: Uint32Array.of(1, 2, 3),
    step: BigInt64Array.of(1n, 2n, 3n),
    timeUnixUs: BigInt64Array.of(1n, 2n, 3n),
    value: Float64Array.of(1, 2, 3),
  };
  const bytes = encodeBatch(9, 1, {
    seriesIndex: all.seriesIndex.subarray(1, 2),
    step: all.step.subarray(1, 2),
    timeUnixUs: all.timeUnixUs.subarray(1, 2),
    value: all.value.subarray(1, 2),
  });
  const { message } = fromBinary(WriteMetricsRequestSchema, bytes);
  assert.deepEqual(
    message.value,
    create(MetricBatchSchema, {
      firstSequence: 9n,
      recordCount: 1,
      seriesIndex: [2],
      step: [2n],
      timeUnixUs: [2n],
      value: [2],
    }),
  );
});

test("columns are read bit for bit", () => {
  const columns = create(SeriesColumnsSchema, {
    key: "größe",
    rank: -1,
    attempt: 2,
    step: [-(2n ** 62n), 0n, 2n ** 62n - 1n],
    timeUnixUs: [1n, 2n, 3n],
    value: [Number.NaN, -0, 5e-324],
  });
  const response = create(ReadMetricsResponseSchema, {
    message: { case: "columns", value: columns },
  });
  const piece = decodeColumns(toBinary(ReadMetricsResponseSchema, response));
  assert.ok(piece !== undefined);
  assert.deepEqual([piece.key, piece.rank, piece.attempt], ["größe", -1, 2]);
  assert.deepEqual(Array.from(new BigInt64Array(joined(piece.steps))), columns.step);
  assert.deepEqual(Array.from(new BigInt64Array(joined(piece.times))), columns.timeUnixUs);
  assert.deepEqual(Array.from(new Float64Array(joined(piece.values))), columns.value);
});

test("a response without columns is none", () => {
  const response = create(ReadMetricsResponseSchema, { message: { case: "caughtUp", value: {} } });
  assert.equal(decodeColumns(toBinary(ReadMetricsResponseSchema, response)), undefined);
});

test("a column in pieces, or unpacked, is read as the packed one", () => {
  const STEP = 3;
  const packed = (writer: BinaryWriter, steps: bigint[]) => {
    writer
      .tag(STEP, WireType.LengthDelimited)
      .bytes(new Uint8Array(BigInt64Array.from(steps).buffer));
  };
  const unpacked = (writer: BinaryWriter, steps: bigint[]) => {
    for (const step of steps) writer.tag(STEP, WireType.Bit64).sfixed64(step);
  };
  for (const [first, second] of [
    [packed, packed],
    [unpacked, unpacked],
    [packed, unpacked],
    [unpacked, packed],
  ] as const) {
    const writer = new BinaryWriter();
    writer.tag(1, WireType.LengthDelimited).fork();
    first(writer, [7n, -8n]);
    writer.tag(99, WireType.Varint).uint32(300); // of a newer gateway
    second(writer, [9n]);
    const piece = decodeColumns(writer.join().finish());
    assert.deepEqual(new BigInt64Array(joined(piece?.steps ?? [])), BigInt64Array.of(7n, -8n, 9n));
  }
});
