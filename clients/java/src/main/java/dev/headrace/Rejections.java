package dev.headrace;

import java.util.List;
import java.util.function.Consumer;

/** Hands rejections to the user's callback. Of the sender's thread. */
final class Rejections {
  private final Writer writer;
  private final Consumer<Rejection> callback;

  Rejections(Writer writer, Consumer<Rejection> callback) {
    this.writer = writer;
    this.callback = callback;
  }

  /** Delivers what the gateway told, except what it told before. */
  void deliver(List<dev.headrace.v1.Rejection> samples) {
    long known = writer.committedSequence();
    for (dev.headrace.v1.Rejection sample : samples) {
      // What stands at or below the known watermark came with an earlier ack.
      if (sample.getSequence() > known) {
        deliver(Rejection.of(sample));
      }
    }
  }

  /** Delivers what the writer itself has refused. */
  void deliverOwn() {
    writer.takeOwnRejections().forEach(this::deliver);
  }

  private void deliver(Rejection rejection) {
    try {
      callback.accept(rejection);
    } catch (RuntimeException defect) { // of the user's; the writer goes on
      Thread thread = Thread.currentThread();
      thread.getUncaughtExceptionHandler().uncaughtException(thread, defect);
    }
  }
}
