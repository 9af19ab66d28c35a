package dev.headrace;

import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;

/**
 * Wakes the one thread that waits for it. What is raised while the thread does not wait wakes it
 * when it does; no lock that it takes in between swallows that, as it would swallow an unpark.
 */
final class Signal {
  private final Semaphore raised = new Semaphore(0);

  void raise() {
    raised.release();
  }

  /** Waits until it was raised since the last wait, or for so long. */
  void await(long nanos) throws InterruptedException {
    raised.tryAcquire(nanos, TimeUnit.NANOSECONDS);
    raised.drainPermits();
  }
}
