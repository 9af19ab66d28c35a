/**
 * Replays a scenario of clients/scenarios through this client; that folder's README has the
 * protocol.
 */

import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { fromJson, type JsonValue } from "@bufbuild/protobuf";

import { encodeBatch } from "../src/columns.js";
import { encoded } from "../src/connection.js";
import { DEFAULT_ADDRESS } from "../src/index.js";
import { type WriteMetricsRequest, WriteMetricsRequestSchema } from "../src/v1.js";
import { replay } from "./replay.js";
import type { Scenario } from "./steps.js";

const { values: options } = parseArgs({
  options: {
    address: { type: "string", default: DEFAULT_ADDRESS },
    scenario: { type: "string" },
    encode: { type: "string" },
    token: { type: "string" },
    "tls-ca": { type: "string" },
    directory: { type: "string", default: "." },
  },
});

if (options.encode !== undefined) {
  const vectors = JSON.parse(await readFile(options.encode, "utf8")) as { message: JsonValue }[];
  for (const { message } of vectors) {
    const bytes = sent(fromJson(WriteMetricsRequestSchema, message));
    console.log(Buffer.from(bytes).toString("hex"));
  }
} else if (options.scenario !== undefined) {
  const scenario = JSON.parse(await readFile(options.scenario, "utf8")) as Scenario;
  const { address, directory, token, "tls-ca": authority } = options;
  const result = await replay(scenario, address, directory, {
    ...(token === undefined ? {} : { token }),
    ...(authority === undefined ? {} : { tls: { ca: await readFile(authority) } }),
  });
  console.log(JSON.stringify({ result }));
} else {
  throw new TypeError("one of --scenario and --encode is required");
}

/** The bytes as this client sends them: batches by its own encoder. */
function sent(request: WriteMetricsRequest): Uint8Array {
  const { message } = request;
  if (message.case !== "batch") return encoded(WriteMetricsRequestSchema, request);
  const batch = message.value;
  return encodeBatch(batch.firstSequence, batch.recordCount, {
    seriesIndex: Uint32Array.from(batch.seriesIndex),
    step: BigInt64Array.from(batch.step),
    timeUnixUs: BigInt64Array.from(batch.timeUnixUs),
    value: Float64Array.from(batch.value),
  });
}
