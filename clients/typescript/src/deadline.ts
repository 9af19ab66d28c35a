/** Deadlines and cancellation of calls. */

import { HeadraceError } from "./errors.js";

/** How long a call may take. */
export interface CallOptions {
  /** Fails the call with `DEADLINE_EXCEEDED` after so many milliseconds; `Infinity`: never. */
  timeoutMs?: number;
  /** Fails the call with the signal's reason when it aborts. */
  signal?: AbortSignal;
}

/** The longest wait that a timer of Node takes. */
const TIMER_MAX_MS = 2 ** 31 - 1;

/** Runs `work` under a signal that aborts when the options, or their default, say so. */
export async function within<Result>(
  options: CallOptions,
  defaultTimeoutMs: number,
  work: (signal: AbortSignal) => Promise<Result>,
): Promise<Result> {
  const { signal, timeoutMs = defaultTimeoutMs } = options;
  signal?.throwIfAborted();
  const controller = new AbortController();
  const abort = () => {
    controller.abort(signal?.reason);
  };
  const expire = () => {
    controller.abort(new HeadraceError("DEADLINE_EXCEEDED", `not done within ${timeoutMs} ms`));
  };
  const timer = timeoutMs > TIMER_MAX_MS ? undefined : setTimeout(expire, timeoutMs);
  signal?.addEventListener("abort", abort);
  try {
    return await work(controller.signal);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}
