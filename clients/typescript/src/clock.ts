/** The time of records. */

/**
 * Makes a clock of microseconds since 1970-01-01 UTC. `Date.now` counts milliseconds only: records
 * within one get ascending microseconds, so that the order of log calls is the order of times.
 */
export function makeClock(nowMs: () => number = Date.now): () => number {
  let millisecond = Number.NaN;
  let microsecond = 0;
  return () => {
    const now = nowMs();
    microsecond = now === millisecond ? Math.min(microsecond + 1, 999) : 0;
    millisecond = now;
    return now * 1_000 + microsecond;
  };
}
