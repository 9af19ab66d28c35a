/** Calls to gateways: the contract's methods over grpc-js. */

import { once } from "node:events";
import { createSecureContext, type SecureContextOptions } from "node:tls";

import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodClientStreaming,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import {
  type ChannelOptions,
  Client as Channel,
  type ClientDuplexStream,
  connectivityState,
  credentials,
  Metadata,
} from "@grpc/grpc-js";

import { parseAddresses } from "./addresses.js";
import { errorOf } from "./errors.js";

/** How to connect, besides where to. */
export interface ConnectOptions {
  /** A bearer token, sent with every call. */
  token?: string;
  /** Authorities and certificates other than the system's; the addresses must be `https://`. */
  tls?: SecureContextOptions;
  /** Options of grpc-js. */
  channelOptions?: ChannelOptions;
}

const CHANNEL_OPTIONS: ChannelOptions = {
  "grpc.keepalive_time_ms": 60_000, // the gateway permits 20 s
  "grpc.keepalive_timeout_ms": 20_000,
  "grpc.keepalive_permit_without_calls": 1,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1_000,
  "grpc.max_receive_message_length": 2 << 20, // a read's message holds 768 KiB of points
  "grpc.enable_retries": 0, // the writer and the transfers resume by themselves
  "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
};

/** Reads messages of one kind from their bytes. */
type Decode<Message> = (bytes: Uint8Array) => Message;

/** Connections to one gateway, or to several that share a database. */
export class Connection {
  readonly #channels: Channel[];
  readonly #metadata = new Metadata();
  #turn = 0;

  constructor(addresses: string, options: ConnectOptions) {
    const { hosts, encrypted } = parseAddresses(addresses);
    if (options.tls !== undefined && !encrypted) {
      throw new TypeError("the option tls needs addresses that begin with https://");
    }
    const transport = encrypted
      ? credentials.createFromSecureContext(createSecureContext(options.tls))
      : credentials.createInsecure();
    const channelOptions = { ...CHANNEL_OPTIONS, ...options.channelOptions };
    this.#channels = hosts.map((host) => new Channel(`dns:///${host}`, transport, channelOptions));
    if (options.token !== undefined) {
      this.#metadata.set("authorization", `Bearer ${options.token}`);
    }
  }

  close(): void {
    for (const channel of this.#channels) channel.close();
  }

  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    signal: AbortSignal,
  ): Promise<MessageShape<O>> {
    const gateway = await this.#next(signal);
    return await settled(signal, (callback) =>
      gateway.makeUnaryRequest(
        pathOf(method),
        (message: MessageInitShape<I>) => encoded(method.input, message),
        decoder(method.output),
        request,
        this.#metadata.clone(),
        callback,
      ),
    );
  }

  /** Sends messages, as fast as they are taken, until the gateway answers; it may do so early. */
  async clientStreaming<I extends DescMessage, O extends DescMessage>(
    method: DescMethodClientStreaming<I, O>,
    requests: AsyncIterable<MessageInitShape<I>>,
    signal: AbortSignal,
  ): Promise<MessageShape<O>> {
    const gateway = await this.#next(signal);
    const answered = new AbortController();
    let sending: Promise<void> | undefined;
    try {
      return await settled(signal, (callback) => {
        const call = gateway.makeClientStreamRequest(
          pathOf(method),
          (message: MessageInitShape<I>) => encoded(method.input, message),
          decoder(method.output),
          this.#metadata.clone(),
          callback,
        );
        const send = async () => {
          for await (const request of requests) {
            if (answered.signal.aborted) return;
            if (!call.write(request)) await once(call, "drain", { signal: answered.signal });
          }
          call.end();
        };
        sending = send().catch((error: unknown) => {
          if (answered.signal.aborted) return;
          call.cancel();
          throw error;
        });
        return call;
      });
    } finally {
      answered.abort();
      await sending; // what it could not read is the reason of the failure
    }
  }

  /** Yields the responses, read by `decode`. */
  async *serverStreaming<I extends DescMessage, O extends DescMessage, Message = MessageShape<O>>(
    method: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    signal: AbortSignal,
    decode: Decode<Message>,
  ): AsyncGenerator<Message> {
    const gateway = await this.#next(signal);
    const call = gateway.makeServerStreamRequest(
      pathOf(method),
      (message: MessageInitShape<I>) => encoded(method.input, message),
      decode,
      request,
      this.#metadata.clone(),
    );
    call.on("error", ignored);
    const cancel = () => {
      call.cancel();
    };
    signal.addEventListener("abort", cancel);
    try {
      for await (const message of call) yield message as Message;
    } catch (error) {
      signal.throwIfAborted();
      throw errorOf(error);
    } finally {
      signal.removeEventListener("abort", cancel);
      cancel();
    }
  }

  /** Opens a stream in both directions. Requests are given as their bytes. */
  async duplex<Message>(
    method: DescMethod,
    decode: Decode<Message>,
    signal: AbortSignal,
  ): Promise<ClientDuplexStream<Uint8Array, Message>> {
    const gateway = await this.#next(signal);
    const call: ClientDuplexStream<Uint8Array, Message> = gateway.makeBidiStreamRequest(
      pathOf(method),
      (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength),
      decode,
      this.#metadata.clone(),
    );
    call.on("error", ignored);
    return call;
  }

  /**
   * The next gateway in turn that is connected. While none is, waits for those that may become so:
   * a call fails for want of a connection only when no address has one.
   */
  async #next(signal: AbortSignal): Promise<Channel> {
    const turn = this.#turn++ % this.#channels.length;
    const inTurn = [...this.#channels.slice(turn), ...this.#channels.slice(0, turn)];
    for (;;) {
      const states = inTurn.map((channel) => channel.getChannel().getConnectivityState(true));
      const ready = states.indexOf(connectivityState.READY);
      const failed = states.every((state) => state === connectivityState.TRANSIENT_FAILURE);
      if (ready >= 0 || failed || inTurn.length === 1) return inTurn[Math.max(ready, 0)] as Channel;
      await changed(inTurn, states, signal);
    }
  }
}

/** Waits until the state of one of the channels is another. */
async function changed(
  channels: readonly Channel[],
  states: readonly connectivityState[],
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  await new Promise<void>((resolve) => {
    const stop = () => {
      signal.removeEventListener("abort", stop);
      resolve();
    };
    signal.addEventListener("abort", stop);
    channels.forEach((channel, i) => {
      const state = states[i] as connectivityState;
      channel.getChannel().watchConnectivityState(state, Infinity, stop);
    });
  });
  signal.throwIfAborted();
}

/** Encodes a message. */
export function encoded<Desc extends DescMessage>(
  schema: Desc,
  message: MessageInitShape<Desc>,
): Buffer {
  const bytes = toBinary(schema, create(schema, message));
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Returns what decodes messages of this kind. */
export function decoder<Desc extends DescMessage>(schema: Desc): Decode<MessageShape<Desc>> {
  return (bytes) => fromBinary(schema, bytes);
}

function pathOf(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

/** Whoever iterates over the stream is told of its error; without a listener it would be fatal. */
function ignored(): void {
  // Nothing to do.
}

/** Waits for the response of a call, and cancels it when the signal aborts. */
async function settled<Response>(
  signal: AbortSignal,
  begin: (callback: (error: Error | null, response?: Response) => void) => { cancel(): void },
): Promise<Response> {
  signal.throwIfAborted();
  let cancel: (() => void) | undefined;
  try {
    return await new Promise<Response>((resolve, reject) => {
      const call = begin((error, response) => {
        if (error !== null) reject(error);
        else resolve(response as Response);
      });
      cancel = () => {
        call.cancel();
      };
      signal.addEventListener("abort", cancel);
    });
  } catch (error) {
    signal.throwIfAborted();
    throw errorOf(error);
  } finally {
    if (cancel !== undefined) signal.removeEventListener("abort", cancel);
  }
}
