/** Streams metrics with nothing but protoc's output: `stub_stream HOST:PORT`. */
import { randomUUID } from "node:crypto";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import * as v1 from "headrace/v1";

const schema = v1.WriteMetricsRequestSchema;
const newId = () => randomUUID().replaceAll("-", "");
const client = new Client(process.argv[2] ?? "127.0.0.1:7420", credentials.createInsecure());
const run = create(v1.CreateRunRequestSchema, { runId: newId() });
await new Promise((resolve) => {
  client.makeUnaryRequest(
    "/headrace.v1.RunService/CreateRun",
    () => Buffer.from(toBinary(v1.CreateRunRequestSchema, run)),
    (bytes) => fromBinary(v1.CreateRunResponseSchema, bytes),
    run,
    resolve, // if it failed, the stream below tells why
  );
});
const stream = client.makeBidiStreamRequest(
  "/headrace.v1.MetricService/WriteMetrics",
  (request: MessageInitShape<typeof schema>) =>
    Buffer.from(toBinary(schema, create(schema, request))),
  (bytes) => fromBinary(v1.WriteMetricsResponseSchema, bytes),
);
const send = (message: MessageInitShape<typeof schema>["message"]) => stream.write({ message });
send({ case: "open", value: { runId: run.runId, writerId: newId(), incarnation: newId() } });
send({ case: "keys", value: { keys: [{ index: 0, key: "loss" }] } });
for (let n = 1; n <= 100; n++) {
  const point = { step: [BigInt(n)], timeUnixUs: [BigInt(Date.now()) * 1_000n], value: [1 / n] };
  const value = { firstSequence: BigInt(n), recordCount: 1, seriesIndex: [0], ...point };
  send({ case: "batch", value });
}
send({ case: "finish", value: { lastSequence: 100n } });
for await (const { message } of stream as AsyncIterable<v1.WriteMetricsResponse>) {
  if (message.case !== "finished") continue;
  console.log(run.runId, String(message.value.counters?.acceptedPoints));
}
