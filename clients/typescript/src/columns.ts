/**
 * Points on the wire. A packed column of fixed-width numbers is the bytes of a typed array, so that
 * columns are copied as a whole instead of number by number. Everything else goes through the
 * generated code.
 */

import { endianness } from "node:os";

import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";

if (endianness() !== "LE") throw new Error("headrace needs a little-endian machine");

/** Points as columns, one element a point, before they are stored. */
export interface PointColumns {
  seriesIndex: Uint32Array;
  step: BigInt64Array;
  timeUnixUs: BigInt64Array;
  value: Float64Array;
}

// Field numbers of WriteMetricsRequest and MetricBatch, ReadMetricsResponse and SeriesColumns.
const REQUEST_BATCH = 3;
const BATCH = { firstSequence: 1, recordCount: 2, seriesIndex: 3, step: 4, time: 5, value: 6 };
const RESPONSE_COLUMNS = 1;
const SERIES = { key: 1, rank: 2, step: 3, time: 4, value: 5, attempt: 6 };

/** Encodes a `WriteMetricsRequest` with a `MetricBatch`. */
export function encodeBatch(
  firstSequence: number | bigint,
  recordCount: number,
  points: PointColumns,
): Uint8Array {
  const writer = new BinaryWriter();
  const column = (field: number, numbers: ArrayBufferView) => {
    writer.tag(field, WireType.LengthDelimited).bytes(bytesOf(numbers));
  };
  writer.tag(REQUEST_BATCH, WireType.LengthDelimited).fork();
  writer.tag(BATCH.firstSequence, WireType.Varint).uint64(firstSequence);
  writer.tag(BATCH.recordCount, WireType.Varint).uint32(recordCount);
  column(BATCH.seriesIndex, points.seriesIndex);
  column(BATCH.step, points.step);
  column(BATCH.time, points.timeUnixUs);
  column(BATCH.value, points.value);
  return writer.join().finish();
}

/** A message of `ReadMetrics`: some points of a series. */
export class SeriesPiece {
  key = "";
  rank = 0;
  attempt = 0;
  readonly steps: Uint8Array[] = [];
  readonly times: Uint8Array[] = [];
  readonly values: Uint8Array[] = [];

  /** Takes in the fields of a `SeriesColumns`, packed, in pieces or one by one. */
  merge(bytes: Uint8Array): void {
    const reader = new BinaryReader(bytes);
    while (reader.pos < reader.len) {
      const [field, type] = reader.tag();
      if (field === SERIES.key) this.key = reader.string();
      else if (field === SERIES.rank) this.rank = reader.int32();
      else if (field === SERIES.attempt) this.attempt = reader.int32();
      else if (field === SERIES.step) this.steps.push(fixed64(reader, type));
      else if (field === SERIES.time) this.times.push(fixed64(reader, type));
      else if (field === SERIES.value) this.values.push(fixed64(reader, type));
      else reader.skip(type, field);
    }
  }
}

/** Decodes a `ReadMetricsResponse`; undefined when it has no columns. */
export function decodeColumns(bytes: Uint8Array): SeriesPiece | undefined {
  const reader = new BinaryReader(bytes);
  let piece: SeriesPiece | undefined;
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === RESPONSE_COLUMNS) (piece ??= new SeriesPiece()).merge(reader.bytes());
    else reader.skip(type, field);
  }
  return piece;
}

/** Joins pieces of a column, in memory of their own. */
export function joined(pieces: readonly Uint8Array[]): ArrayBuffer {
  const bytes = new Uint8Array(pieces.reduce((length, piece) => length + piece.length, 0));
  let end = 0;
  for (const piece of pieces) {
    bytes.set(piece, end);
    end += piece.length;
  }
  return bytes.buffer;
}

/** Reads a packed column, or a single element of one that is not packed. */
function fixed64(reader: BinaryReader, type: WireType): Uint8Array {
  return type === WireType.LengthDelimited ? reader.bytes() : reader.skip(type);
}

function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
