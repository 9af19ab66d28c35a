package dev.headrace;

import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.ThreadLocalRandom;

/** Decides how long to wait before the next attempt. Of one thread. */
final class Backoff {
  static final Duration FIRST = Duration.ofMillis(100);
  static final Duration MAX = Duration.ofSeconds(5);

  /** As many failures in a row that resuming should have cured are a defect. */
  static final int RESUMES_MAX = 5;

  private static final int DOUBLINGS_MAX = 10;

  private int failures;
  private int resumes;

  /** Forgets the failures. */
  void progress() {
    failures = 0;
    resumes = 0;
  }

  /** Returns whether nothing has failed since the last progress. */
  boolean isFresh() {
    return failures == 0;
  }

  /**
   * Counts a failure and returns the wait, or nothing when there is to be no further attempt. Half
   * of the wait is random, so that those who failed together do not return together.
   */
  Optional<Duration> next(HeadraceException failure) {
    Retry retry = Retry.after(failure);
    if (retry == Retry.NEVER || (retry == Retry.RESUME && ++resumes > RESUMES_MAX)) {
      return Optional.empty();
    }
    long limitNanos =
        Math.min(FIRST.toNanos() << Math.min(failures++, DOUBLINGS_MAX), MAX.toNanos());
    Duration wait =
        Duration.ofNanos(limitNanos / 2 + ThreadLocalRandom.current().nextLong(limitNanos / 2));
    return Optional.of(wait.compareTo(failure.retryAfter()) > 0 ? wait : failure.retryAfter());
  }
}
