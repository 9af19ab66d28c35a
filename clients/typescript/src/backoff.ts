/** How long to wait before the next attempt, and when there is none. */

import { setTimeout as sleep } from "node:timers/promises";

import { HeadraceError, remedyFor } from "./errors.js";

const WAIT_FIRST_MS = 100;
const WAIT_MAX_MS = 5_000;

/** More failures in a row that resuming should have cured are a defect that it will not cure. */
const RESUMES_MAX = 5;

/** Counts failures in a row. */
export class Backoff {
  #failures = 0;
  #resumes = 0;

  /** Whether an attempt has failed since the last progress. */
  get failed(): boolean {
    return this.#failures > 0;
  }

  /** Forgets the failures. */
  progress(): void {
    this.#failures = 0;
    this.#resumes = 0;
  }

  /**
   * Counts a failure. Half of the wait is random, so that those who failed together do not return
   * together.
   *
   * @returns the wait in milliseconds; undefined when there is to be no further attempt.
   */
  next(failure: HeadraceError): number | undefined {
    const remedy = remedyFor(failure);
    if (remedy === "never") return undefined;
    if (remedy === "resume" && ++this.#resumes > RESUMES_MAX) return undefined;
    const wait = Math.min(WAIT_FIRST_MS * 2 ** this.#failures++, WAIT_MAX_MS);
    return Math.max((wait * (1 + Math.random())) / 2, failure.retryAfterMs);
  }

  /** Waits for the next attempt; throws `error` when there is to be none. */
  async after(error: unknown, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    const wait = error instanceof HeadraceError ? this.next(error) : undefined;
    if (wait === undefined) throw error;
    await pause(wait, signal);
  }
}

/** Waits; throws the signal's reason when it aborts. */
export async function pause(waitMs: number, signal: AbortSignal): Promise<void> {
  try {
    await sleep(waitMs, undefined, { signal });
  } catch {
    signal.throwIfAborted();
  }
}
