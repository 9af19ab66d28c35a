/** Waiting for a change. */

/** Wakes all who wait when something has changed; they look for themselves what. */
export class Condition {
  readonly #waiting = new Set<() => void>();

  notify(): void {
    for (const wake of this.#waiting) wake();
  }

  /** Waits for the next `notify`; throws the signal's reason when it aborts before. */
  async wait(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    await new Promise<void>((resolve) => {
      const wake = () => {
        this.#waiting.delete(wake);
        signal?.removeEventListener("abort", wake);
        resolve();
      };
      this.#waiting.add(wake);
      signal?.addEventListener("abort", wake);
    });
    signal?.throwIfAborted();
  }
}
