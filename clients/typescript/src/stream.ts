/** One conversation of a writer with a gateway, from `open` to the end of the stream. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ClientDuplexStream } from "@grpc/grpc-js";

import { type Connection, decoder, encoded } from "./connection.js";
import { errorOf, HeadraceError } from "./errors.js";
import {
  MetricService,
  type OpenWriterSchema,
  WriteMetricsRequestSchema,
  type WriteMetricsResponse,
  WriteMetricsResponseSchema,
} from "./gen/headrace/v1/metric_service_pb.js";
import type { Ledger, Rejection } from "./ledger.js";

const HEARTBEAT_DEFAULT_MS = 15_000;
/** Of the interval the gateway asks for: one that is late is still in time. */
const HEARTBEAT_SHARE = 2 / 3;
/** 500 keys of 251 characters of 4 bytes stay below the message limit of 1 MiB. */
const KEYS_PER_MESSAGE = 500;

/** How a conversation ended. */
export interface Ending {
  /** The gateway asked to move: how long to wait, in milliseconds. */
  moveAfterMs: number | undefined;
  /** Why it ended, otherwise. */
  failure: unknown;
}

/** What a {@link Conversation} tells its writer. */
export interface Listener {
  /** The ledger has changed. */
  progressed(): void;
  /** Points were rejected. */
  rejected(rejections: readonly Rejection[]): void;
}

type Request = MessageInitShape<typeof WriteMetricsRequestSchema>["message"];

/** A stream of one writer. */
export class Conversation {
  readonly #call: ClientDuplexStream<Uint8Array, WriteMetricsResponse>;
  #opened = false;
  #ended = false; // nothing more is sent
  #next = 0; // the record to send
  #keysSent = 0;
  #heartbeatMs = HEARTBEAT_DEFAULT_MS * HEARTBEAT_SHARE;
  #sentMs = 0;
  #timer: NodeJS.Timeout | undefined;
  #moveWithinMs: number | undefined;

  /** Opens the stream, as soon as there is a connection for it. */
  static async begin(
    connection: Connection,
    ledger: Ledger,
    listener: Listener,
    signal: AbortSignal,
  ): Promise<Conversation> {
    const { writeMetrics } = MetricService.method;
    const decode = decoder(WriteMetricsResponseSchema);
    return new Conversation(
      await connection.duplex(writeMetrics, decode, signal),
      ledger,
      listener,
    );
  }

  private constructor(
    call: ClientDuplexStream<Uint8Array, WriteMetricsResponse>,
    private readonly ledger: Ledger,
    private readonly listener: Listener,
  ) {
    this.#call = call;
    this.#call.on("drain", () => {
      this.pump();
    });
  }

  /** Converses until the stream ends, or the signal aborts. */
  async hold(
    open: MessageInitShape<typeof OpenWriterSchema>,
    signal: AbortSignal,
  ): Promise<Ending> {
    let failure: unknown;
    const cancel = () => {
      this.#call.cancel();
    };
    signal.addEventListener("abort", cancel);
    try {
      this.#send({ case: "open", value: open });
      for await (const response of this.#call) this.#receive(response as WriteMetricsResponse);
      failure = new HeadraceError("UNAVAILABLE", "the stream ended before the writer was finished");
    } catch (error) {
      failure = errorOf(error);
    } finally {
      this.#end();
      signal.removeEventListener("abort", cancel);
      cancel();
    }
    const moveWithinMs = this.#moveWithinMs;
    const moveAfterMs = moveWithinMs === undefined ? undefined : Math.random() * moveWithinMs;
    return { moveAfterMs, failure };
  }

  /** Sends what there is to send, as far as the stream takes it. */
  pump(): void {
    if (!this.#opened) return;
    clearTimeout(this.#timer);
    while (!this.#ended && !this.#call.writableNeedDrain) {
      const nowMs = Date.now();
      const next = this.ledger.next(this.#next, nowMs);
      if (next.send === "batch") {
        this.#sendKeys();
        this.#write(next.block.encodeFrom(next.from));
        this.#next = next.block.lastSequence + 1;
      } else if (next.send === "finish") {
        this.#send({ case: "finish", value: { lastSequence: BigInt(next.lastSequence) } });
        this.#end();
      } else {
        const untilHeartbeatMs = this.#sentMs + this.#heartbeatMs - nowMs;
        if (untilHeartbeatMs > 0) {
          this.#timer = setTimeout(
            () => {
              this.pump();
            },
            Math.min(next.forMs, untilHeartbeatMs),
          );
          return;
        }
        this.#send({ case: "heartbeat", value: {} });
      }
    }
  }

  #receive({ message }: WriteMetricsResponse): void {
    if (!this.#opened && message.case !== "opened") {
      throw new HeadraceError("UNIMPLEMENTED", "the gateway did not answer `opened`");
    }
    switch (message.case) {
      case "opened": {
        const interval = message.value.limits?.heartbeatIntervalMs ?? 0;
        this.#heartbeatMs = (interval > 0 ? interval : HEARTBEAT_DEFAULT_MS) * HEARTBEAT_SHARE;
        const { next, resync, rejections } = this.ledger.opened(message.value);
        if (resync) this.#send({ case: "resync", value: { firstSequence: BigInt(next) } });
        this.#next = next;
        this.#opened = true;
        this.listener.rejected(rejections);
        break;
      }
      case "ack":
        this.listener.rejected(this.ledger.progress(message.value));
        break;
      case "reconnect":
        this.#moveWithinMs = message.value.retryAfterMs;
        this.ledger.reconnects += 1;
        this.#end();
        break;
      case "finished":
        this.ledger.progress(message.value);
        this.ledger.finished = true;
        break;
    }
    this.listener.progressed();
    this.pump();
  }

  /** Defines the keys that this stream has not defined yet. */
  #sendKeys(): void {
    const { names } = this.ledger.keys;
    while (this.#keysSent < names.length) {
      const start = this.#keysSent;
      const keys = names
        .slice(start, start + KEYS_PER_MESSAGE)
        .map((key, offset) => ({ index: start + offset, key }));
      this.#send({ case: "keys", value: { keys } });
      this.#keysSent += keys.length;
    }
  }

  #send(message: Request): void {
    this.#write(encoded(WriteMetricsRequestSchema, { message }));
  }

  #write(bytes: Uint8Array): void {
    this.#call.write(bytes);
    this.#sentMs = Date.now();
  }

  /** Stops sending; what the gateway has to say is still read. */
  #end(): void {
    clearTimeout(this.#timer);
    if (!this.#ended) this.#call.end();
    this.#ended = true;
  }
}
