package dev.headrace;

import dev.headrace.v1.MetricServiceGrpc.MetricServiceStub;
import dev.headrace.v1.OpenWriter;
import java.time.Duration;
import java.util.Optional;

/**
 * A writer's thread: holds one conversation with the gateway after the other, until the writer is
 * finished, closed, or has failed. All callbacks of the writer run on it.
 */
final class Sender implements Runnable {
  private final Writer writer;
  private final MetricServiceStub metrics;
  private final OpenWriter open;
  private final Rejections rejections;
  private final Signal signal;
  private final Runnable onEnd;

  private Sender(
      Writer writer,
      MetricServiceStub metrics,
      OpenWriter open,
      Rejections rejections,
      Signal signal,
      Runnable onEnd) {
    this.writer = writer;
    this.metrics = metrics;
    this.open = open;
    this.rejections = rejections;
    this.signal = signal;
    this.onEnd = onEnd;
  }

  /** Returns the thread, not yet started. */
  static Thread threadOf(
      Writer writer,
      MetricServiceStub metrics,
      WriterOptions options,
      Signal signal,
      Runnable onEnd) {
    OpenWriter open = options.open();
    Rejections rejections = new Rejections(writer, options.onRejection());
    Sender sender = new Sender(writer, metrics, open, rejections, signal, onEnd);
    Thread thread = new Thread(sender, "headrace-writer-" + open.getWriterId());
    thread.setDaemon(true);
    return thread;
  }

  @Override
  public void run() {
    try {
      converse();
    } catch (InterruptedException stray) { // nobody has reason to interrupt this thread
      writer.fail(HeadraceException.interrupted());
    } catch (RuntimeException | Error defect) {
      writer.fail(HeadraceException.internal(defect));
      throw defect;
    } finally {
      rejections.deliverOwn();
      onEnd.run();
    }
  }

  private void converse() throws InterruptedException {
    Backoff retries = new Backoff();
    while (!writer.isClosed()) {
      long before = writer.committedSequence();
      Conversation conversation = new Conversation(writer, rejections, signal, metrics);
      Optional<HeadraceException> failure = conversation.hold(open);
      if (writer.isFinished()) {
        return;
      }
      if (writer.committedSequence() > before) {
        retries.progress();
      }
      Optional<Duration> wait = conversation.moveAfter().or(() -> failure.flatMap(retries::next));
      if (wait.isEmpty()) {
        failure.ifPresent(writer::fail);
        return;
      }
      pause(wait.get());
    }
  }

  private void pause(Duration wait) throws InterruptedException {
    long until = System.nanoTime() + wait.toNanos();
    for (long left = wait.toNanos(); left > 0; left = until - System.nanoTime()) {
      if (writer.isClosed()) {
        return;
      }
      rejections.deliverOwn();
      signal.await(left);
    }
  }
}
