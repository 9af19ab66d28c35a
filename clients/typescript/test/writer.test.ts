import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { after, test } from "node:test";
import { promisify } from "node:util";

import { Server, ServerCredentials } from "@grpc/grpc-js";

import { connect, newId } from "../src/index.js";

/** An address at which nobody listens. */
async function deadAddress(): Promise<string> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert.ok(typeof address === "object" && address !== null);
  server.close();
  await once(server, "close");
  return `127.0.0.1:${address.port}`;
}

const client = connect(await deadAddress());
after(() => {
  client.close();
});

test("log does not wait for a gateway that is away, and flush does until its deadline", async () => {
  const writer = client.openWriter({ runId: newId() });
  for (let step = 0; step < 10_000; step++) await writer.log(step, { loss: 1 });
  assert.equal(writer.status.loggedSequence, 10_000);
  await assert.rejects(writer.flush({ timeoutMs: 20 }), { code: "DEADLINE_EXCEEDED" });
  writer.close();
});

test("a full window fails log, or keeps it waiting until the writer is closed", async () => {
  const failing = client.openWriter({ runId: newId(), windowPoints: 2, whenFull: "error" });
  await failing.log(0, { a: 1, b: 2 });
  await assert.rejects(failing.log(1, { a: 1 }), { code: "WINDOW_FULL" });
  assert.equal(failing.status.loggedSequence, 1);
  const waiting = client.openWriter({ runId: newId(), windowPoints: 2 });
  await waiting.log(0, { a: 1, b: 2 });
  const refused = assert.rejects(waiting.log(1, { a: 1 }), { code: "WRITER_CLOSED" });
  waiting.close();
  await refused;
});

test("what no point can be is refused before anything is logged", async () => {
  const writer = client.openWriter({ runId: newId() });
  await assert.rejects(writer.log(0.5, { loss: 1 }), /step .* 0.5/);
  await assert.rejects(writer.log(2n ** 63n, { loss: 1 }), RangeError);
  const values = { loss: 1, label: "cat" } as unknown as Record<string, number>;
  await assert.rejects(writer.log(0, values), /"label" is a string/);
  assert.equal(writer.status.loggedSequence, 0);
  writer.close();
});

test("options out of range are refused, by name", () => {
  assert.throws(() => client.openWriter({ runId: newId(), batchPointsMax: 9_000 }), /8192/);
  assert.throws(() => client.openWriter({ runId: newId(), windowPoints: 0 }), /windowPoints/);
});

test("calls end by their deadline or signal, with its reason", async () => {
  const writer = client.openWriter({ runId: newId() });
  await writer.log(0, { loss: 1 });
  const controller = new AbortController();
  const stopped = assert.rejects(writer.finish({ signal: controller.signal }), /enough/);
  controller.abort(new Error("enough"));
  await stopped;
  await assert.rejects(writer.finish({ timeoutMs: 10 }), { code: "DEADLINE_EXCEEDED" });
  writer.close();
  await assert.rejects(writer.finish(), { code: "WRITER_CLOSED" });
});

test("a call that reaches no gateway says so", async () => {
  await assert.rejects(client.getRun(newId()), { code: "UNAVAILABLE" });
});

test("a call reaches the address that is alive, whichever comes first", async () => {
  const server = new Server();
  const bind = promisify(server.bindAsync.bind(server));
  const alive = `127.0.0.1:${await bind("127.0.0.1:0", ServerCredentials.createInsecure())}`;
  const dead = await deadAddress();
  for (const addresses of [`${dead},${alive}`, `${alive},${dead}`, `${dead},${dead},${alive}`]) {
    const several = connect(addresses);
    for (let call = 0; call < 4; call++) {
      await assert.rejects(several.getRun(newId()), { code: "UNIMPLEMENTED" }, addresses);
    }
    several.close();
  }
  server.forceShutdown();
});
