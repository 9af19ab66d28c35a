package dev.headrace;

import dev.headrace.v1.ErrorReason;
import dev.headrace.v1.MetricServiceGrpc.MetricServiceStub;
import dev.headrace.v1.WriterCounters;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.BooleanSupplier;

/**
 * Logs records of one process into one run. Made by {@link Client#openWriter}.
 *
 * <p>A record is what one log call wrote. Records are numbered from 1 in the order of the calls.
 * What ends a writer for good (its id is used elsewhere, the token is wrong, the run is unknown) is
 * thrown by {@code log}, {@code flush} and {@code finish} from then on.
 */
public final class Writer implements AutoCloseable {
  private final WriterOptions options;
  private final Signal signal = new Signal(); // raised for the sender
  private final Thread sender;

  private final ReentrantLock lock = new ReentrantLock();
  private final Condition changed = lock.newCondition();

  // The lock guards what follows.
  private final Backlog backlog;
  private final KeyDictionary dictionary = new KeyDictionary();
  private final Draft draft = new Draft();
  private final List<Rejection> ownRejections = new ArrayList<>();
  private long flushTo; // records up to it do not linger
  private boolean finishing;
  private boolean closed;
  private long committedSequence;
  private Counters counters = Counters.of(WriterCounters.getDefaultInstance());
  private boolean finished;
  private int streams;
  private int reconnects;
  private Optional<HeadraceException> failure = Optional.empty();

  private Writer(MetricServiceStub metrics, WriterOptions options, Set<Writer> open) {
    this.options = options;
    backlog = new Backlog(options.batchPointsMax());
    sender = Sender.threadOf(this, metrics, options, signal, () -> open.remove(this));
  }

  /** Makes a writer and starts its thread; {@code open} has the writer until the thread ends. */
  static Writer open(MetricServiceStub metrics, WriterOptions options, Set<Writer> open) {
    Writer writer = new Writer(metrics, options, open);
    open.add(writer);
    writer.sender.start();
    return writer;
  }

  /**
   * Logs one record: values at a step, now. Steps may come in any order, and again. Returns at
   * once, unless the window is full and the writer was opened with {@link WhenFull#BLOCK}.
   *
   * @throws WindowFullException the window is full; the record is not logged
   * @throws WriterClosedException the writer was finished or closed
   * @throws HeadraceException why the writer gave up
   */
  public void log(long step, Map<String, ? extends Number> values) {
    logAt(step, Times.nowUnixUs(), values);
  }

  /** Logs one record at a time of the caller's, in microseconds since 1970-01-01 UTC. */
  public void logAt(long step, long timeUnixUs, Map<String, ? extends Number> values) {
    int points = values.size();
    if (points == 0) {
      return;
    }
    boolean ready;
    lock.lock();
    try {
      admit(points);
      draft.begin(points);
      values.forEach((key, value) -> draft.add(dictionary.indexOf(key), key, value.doubleValue()));
      ready = addDraft(step, timeUnixUs);
    } finally {
      lock.unlock();
    }
    if (ready) {
      signal.raise();
    }
  }

  /**
   * Looks keys up once, for the records that have them all: {@code log} with what this returns
   * allocates nothing.
   */
  public Keys keys(String... names) {
    String[] copies = names.clone();
    int[] indexes = new int[copies.length];
    lock.lock();
    try {
      for (int i = 0; i < copies.length; i++) {
        indexes[i] = dictionary.indexOf(copies[i]);
      }
    } finally {
      lock.unlock();
    }
    return new Keys(this, copies, indexes);
  }

  /**
   * Logs one record, now: {@code values[i]} is the value of the key number i. Otherwise like {@link
   * #log(long, Map)}. The array may be used again after the call.
   *
   * @throws IllegalArgumentException there are not as many values as keys, or the keys are of
   *     another writer
   */
  public void log(long step, Keys keys, double... values) {
    logAt(step, Times.nowUnixUs(), keys, values);
  }

  /** Logs one record at a time of the caller's, in microseconds since 1970-01-01 UTC. */
  public void logAt(long step, long timeUnixUs, Keys keys, double... values) {
    if (!keys.isOf(this)) {
      throw new IllegalArgumentException("the keys were looked up by another writer");
    }
    if (values.length != keys.size()) {
      throw new IllegalArgumentException(
          "a record of " + keys.size() + " keys has as many values: " + values.length);
    }
    if (values.length == 0) {
      return;
    }
    boolean ready;
    lock.lock();
    try {
      admit(values.length);
      draft.begin(values.length);
      for (int i = 0; i < values.length; i++) {
        draft.add(keys.index(i), keys.name(i), values[i]);
      }
      ready = addDraft(step, timeUnixUs);
    } finally {
      lock.unlock();
    }
    if (ready) {
      signal.raise();
    }
  }

  /**
   * Waits until everything logged before is committed.
   *
   * @throws HeadraceException the time is over ({@code DEADLINE_EXCEEDED}), or why the writer gave
   *     up
   */
  public void flush(Duration timeout) {
    lock.lock();
    try {
      long target = backlog.lastSequence();
      flushTo = Math.max(flushTo, target);
      signal.raise();
      await(timeout, () -> committedSequence >= target);
    } finally {
      lock.unlock();
    }
  }

  /**
   * Waits until everything is committed and the gateway has noted that the writer ends, and closes
   * it. {@code log} fails from the call on. When the time is over first, the writer goes on in the
   * background, and this may be called again.
   *
   * @throws HeadraceException the time is over ({@code DEADLINE_EXCEEDED}), or why the writer gave
   *     up
   */
  public void finish(Duration timeout) {
    lock.lock();
    try {
      finishing = true;
      signal.raise();
      await(timeout, () -> finished);
    } finally {
      lock.unlock();
    }
    close();
  }

  /**
   * Drops the writer without finishing it. What is not acknowledged is lost to this process; a
   * later writer with the same ids continues. Idempotent.
   */
  @Override
  public void close() {
    lock.lock();
    try {
      closed = true;
      changed.signalAll();
    } finally {
      lock.unlock();
    }
    signal.raise();
    if (Thread.currentThread() == sender) {
      return; // a callback closes its writer
    }
    try {
      sender.join();
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt(); // it ends by itself
    }
  }

  /** Tells how far the writer has come. */
  public WriterStatus status() {
    lock.lock();
    try {
      return new WriterStatus(
          backlog.lastSequence(),
          committedSequence,
          backlog.points(),
          counters,
          finished,
          streams,
          reconnects,
          failure);
    } finally {
      lock.unlock();
    }
  }

  // What the user's threads do with the lock held.

  private void admit(int points) {
    while (true) {
      throwIfOver();
      if (finishing) {
        throw new WriterClosedException();
      }
      if (backlog.points() == 0 || backlog.points() + points <= options.windowPoints()) {
        return;
      }
      if (options.whenFull() == WhenFull.ERROR) {
        throw new WindowFullException(options.windowPoints());
      }
      try {
        changed.await();
      } catch (InterruptedException interrupted) {
        throw HeadraceException.interrupted();
      }
    }
  }

  /** Returns whether the sender should look. */
  private boolean addDraft(long step, long timeUnixUs) {
    boolean ready =
        backlog.add(
            step, timeUnixUs, draft.indexes(), draft.values(), draft.points(), System.nanoTime());
    if (backlog.lastSequence() <= committedSequence) {
      backlog.forget(committedSequence); // logged by a predecessor
    }
    if (draft.refusedPoints() == 0) {
      return ready;
    }
    ownRejections.add(
        new Rejection(
            ErrorReason.ERROR_REASON_KEYS_EXHAUSTED,
            draft.refusedKey(),
            step,
            backlog.lastSequence(),
            "keys",
            "a writer has at most " + KeyDictionary.KEYS_MAX + " keys",
            draft.refusedPoints()));
    return true;
  }

  private void await(Duration timeout, BooleanSupplier reached) {
    long leftNanos = TimeUnit.NANOSECONDS.convert(timeout);
    while (!reached.getAsBoolean()) {
      throwIfOver();
      if (leftNanos <= 0) {
        throw new HeadraceException(
            Status.Code.DEADLINE_EXCEEDED, "no acknowledgement within " + timeout);
      }
      try {
        leftNanos = changed.awaitNanos(leftNanos);
      } catch (InterruptedException interrupted) {
        throw HeadraceException.interrupted();
      }
    }
  }

  private void throwIfOver() {
    if (failure.isPresent()) {
      throw failure.get().again();
    }
    if (closed) {
      throw new WriterClosedException();
    }
  }

  // What the sender asks and tells.

  boolean isClosed() {
    lock.lock();
    try {
      return closed;
    } finally {
      lock.unlock();
    }
  }

  boolean isFinished() {
    lock.lock();
    try {
      return finished;
    } finally {
      lock.unlock();
    }
  }

  long committedSequence() {
    lock.lock();
    try {
      return committedSequence;
    } finally {
      lock.unlock();
    }
  }

  /** Returns the rejections that came from no gateway, each once. */
  List<Rejection> takeOwnRejections() {
    lock.lock();
    try {
      List<Rejection> taken = List.copyOf(ownRejections);
      ownRejections.clear();
      return taken;
    } finally {
      lock.unlock();
    }
  }

  /** Decides what a stream does that has sent the records before {@code sequence}. */
  Turn next(long sequence, int keysSent) {
    lock.lock();
    try {
      long first = Math.max(sequence, committedSequence + 1);
      Optional<Block> found = backlog.find(first);
      if (found.isEmpty()) {
        // A successor may end with fewer records than are committed already.
        return finishing
            ? new Turn.Finish(Math.max(backlog.lastSequence(), committedSequence))
            : new Turn.Wait(Long.MAX_VALUE);
      }
      Block block = found.get();
      if (!block.isSealed() && !finishing && flushTo < block.firstSequence()) {
        long age = System.nanoTime() - block.startedNanos();
        long left = TimeUnit.NANOSECONDS.convert(options.linger()) - age;
        if (left > 0) {
          return new Turn.Wait(left);
        }
      }
      block.seal();
      return new Turn.Send(block, first, dictionary.from(keysSent));
    } finally {
      lock.unlock();
    }
  }

  /** Takes in a watermark and what was told with it. */
  void progress(long committed, WriterCounters told) {
    lock.lock();
    try {
      committedSequence = Math.max(committedSequence, committed);
      counters = Counters.of(told);
      backlog.forget(committedSequence);
      changed.signalAll();
    } finally {
      lock.unlock();
    }
  }

  void streamOpened() {
    lock.lock();
    try {
      streams++;
    } finally {
      lock.unlock();
    }
  }

  void reconnects() {
    lock.lock();
    try {
      reconnects++;
    } finally {
      lock.unlock();
    }
  }

  void finished() {
    lock.lock();
    try {
      finished = true;
      changed.signalAll();
    } finally {
      lock.unlock();
    }
  }

  /** Ends the writer for good. */
  void fail(HeadraceException reason) {
    lock.lock();
    try {
      failure = Optional.of(reason);
      changed.signalAll();
    } finally {
      lock.unlock();
    }
  }
}
