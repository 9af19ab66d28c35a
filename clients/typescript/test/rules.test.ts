import assert from "node:assert/strict";
import { test } from "node:test";

import { parseAddresses } from "../src/addresses.js";
import { makeClock } from "../src/clock.js";
import { connect, newId } from "../src/index.js";
import { KeyDictionary, KEYS_MAX } from "../src/keys.js";
import { partBytes } from "../src/parts.js";

test("an id is a UUID of version 7", () => {
  assert.match(newId(), /^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$/);
  assert.notEqual(newId(), newId());
  assert.ok(Math.abs(Number.parseInt(newId().slice(0, 12), 16) - Date.now()) < 60_000);
});

test("the part size follows from the size", () => {
  for (const [size, expected] of [
    [17 * 2 ** 20, 16 * 2 ** 20],
    [2 ** 30, 16 * 2 ** 20],
    [2 ** 30 + 1, 64 * 2 ** 20],
    [5 * 2 ** 40, 2 ** 30],
  ] as const) {
    assert.equal(partBytes(size), expected, `of ${size} bytes`);
  }
});

test("addresses are of one kind", () => {
  assert.deepEqual(parseAddresses("https://a:1, https://b.example:2/"), {
    hosts: ["a:1", "b.example:2"],
    encrypted: true,
  });
  assert.deepEqual(parseAddresses("[::1]:7420"), { hosts: ["[::1]:7420"], encrypted: false });
  for (const bad of ["a", "a:1,https://b:2", "", "a:1,", "a:b", "ftp://a:1"]) {
    assert.throws(() => parseAddresses(bad), TypeError, bad);
  }
});

test("certificates without https are refused", () => {
  assert.throws(() => connect("127.0.0.1:1", { tls: {} }), /https/);
});

test("long keys share an index, and what is no Unicode is replaced", () => {
  const keys = new KeyDictionary();
  const long = "𝔸".repeat(300);
  assert.equal(keys.indexOf(long), keys.indexOf(`${long}x`));
  assert.equal(Array.from(keys.names[0] as string).length, 251);
  const emoji = "𝔸".repeat(250);
  assert.equal(keys.names[keys.indexOf(emoji) as number], emoji);
  const lone = keys.indexOf("a\ud800b");
  assert.equal(keys.names[lone as number], "a\ufffdb");
  assert.equal(keys.indexOf("a\ufffdb"), lone);
});

test("a key too many has no index, and the others keep theirs", () => {
  const keys = new KeyDictionary();
  for (let index = 0; index < KEYS_MAX; index++) keys.indexOf(`key/${index}`);
  assert.equal(keys.indexOf("more"), undefined);
  assert.equal(keys.indexOf("key/7"), 7);
});

test("records within a millisecond have ascending times", () => {
  let now = 5;
  const clock = makeClock(() => now);
  assert.deepEqual([clock(), clock(), clock()], [5_000, 5_001, 5_002]);
  now = 6;
  assert.equal(clock(), 6_000);
  now = 4; // set back
  assert.equal(clock(), 4_000);
  for (let record = 0; record < 2_000; record++) clock();
  assert.equal(clock(), 4_999);
});
