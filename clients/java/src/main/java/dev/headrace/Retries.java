package dev.headrace;

import io.grpc.Deadline;
import io.grpc.stub.AbstractStub;
import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.TimeUnit;

/** The attempts of one transfer: the waits between them, and when they must end. Of one thread. */
final class Retries {
  private final Backoff backoff = new Backoff();
  private final Optional<Deadline> deadline;

  Retries(Optional<Duration> timeout) {
    deadline = timeout.map(Retries::deadlineAfter);
  }

  /** Forgets the failures. */
  void progress() {
    backoff.progress();
  }

  /** Returns whether nothing has failed since the last progress. */
  boolean isFresh() {
    return backoff.isFresh();
  }

  /**
   * Waits until the next attempt.
   *
   * @throws HeadraceException the failure, when there is to be no further attempt
   */
  void waitAfter(HeadraceException failure) {
    Duration wait = backoff.next(failure).orElseThrow(() -> failure);
    if (deadline.isPresent() && deadline.get().isBefore(deadlineAfter(wait))) {
      throw failure;
    }
    try {
      Thread.sleep(wait.toMillis());
    } catch (InterruptedException interrupted) {
      throw HeadraceException.interrupted();
    }
  }

  /** Returns a stub whose calls end with the transfer's time. */
  <S extends AbstractStub<S>> S within(S stub) {
    return deadline.map(stub::withDeadline).orElse(stub);
  }

  /** Returns a stub whose calls end with the transfer's time, or earlier. */
  <S extends AbstractStub<S>> S within(S stub, Duration callTimeout) {
    Deadline ofCall = deadlineAfter(callTimeout);
    return stub.withDeadline(deadline.map(ofCall::minimum).orElse(ofCall));
  }

  private static Deadline deadlineAfter(Duration duration) {
    return Deadline.after(TimeUnit.NANOSECONDS.convert(duration), TimeUnit.NANOSECONDS);
  }
}
