package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

class SignalTest {
  @Test
  @Timeout(10)
  void whatWasRaisedBeforeTheWaitEndsItAndOneWaitTakesAll() throws InterruptedException {
    Signal signal = new Signal();
    signal.raise();
    signal.raise();
    signal.await(Long.MAX_VALUE);
    long startedNanos = System.nanoTime();
    signal.await(1_000_000);
    assertTrue(System.nanoTime() - startedNanos >= 1_000_000);
  }
}
