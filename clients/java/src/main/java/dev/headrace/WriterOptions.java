package dev.headrace;

import dev.headrace.v1.OpenWriter;
import java.time.Duration;
import java.util.List;
import java.util.function.Consumer;

/** Describes a writer. Immutable. */
public final class WriterOptions {
  private static final int BATCH_POINTS = 4_096;
  private static final Duration LINGER = Duration.ofMillis(50);
  private static final int WINDOW_POINTS = 1 << 20;

  private final OpenWriter open;
  private final int batchPointsMax;
  private final Duration linger;
  private final int windowPoints;
  private final WhenFull whenFull;
  private final Consumer<Rejection> onRejection;

  private WriterOptions(
      OpenWriter open,
      int batchPointsMax,
      Duration linger,
      int windowPoints,
      WhenFull whenFull,
      Consumer<Rejection> onRejection) {
    this.open = open;
    this.batchPointsMax = batchPointsMax;
    this.linger = linger;
    this.windowPoints = windowPoints;
    this.whenFull = whenFull;
    this.onRejection = onRejection;
  }

  /** Returns the options of a new writer of the run's rank 0 and attempt 1. */
  public static WriterOptions forRun(String runId) {
    return new WriterOptions(
        OpenWriter.newBuilder().setRunId(runId).build(),
        BATCH_POINTS,
        LINGER,
        WINDOW_POINTS,
        WhenFull.BLOCK,
        rejection -> {});
  }

  /**
   * Names the writer and its incarnation, 32 lower-case hex digits each. A process that is to
   * continue another one's writer gives the same two and logs the same records again from the first
   * on: those that are committed already are not sent. Default: new ones for each writer.
   */
  public WriterOptions withWriterId(String writerId, String incarnation) {
    return with(open.toBuilder().setWriterId(writerId).setIncarnation(incarnation));
  }

  /** Sets the rank of the process in its job, from 0. */
  public WriterOptions withRank(int rank) {
    return with(open.toBuilder().setRank(rank));
  }

  /** Sets which start of the job this is, from 1. */
  public WriterOptions withAttempt(int attempt) {
    return with(open.toBuilder().setAttempt(attempt));
  }

  /** Sets the first step that this attempt computes anew. Default: nothing is hidden. */
  public WriterOptions withResumeStep(long step) {
    return with(open.toBuilder().setResumeStep(step));
  }

  /** Sets the keys that no resume step hides. */
  public WriterOptions withResumeExemptKeys(String... keys) {
    return with(open.toBuilder().clearResumeExemptKeys().addAllResumeExemptKeys(List.of(keys)));
  }

  /** Sets how many points a batch has at most: 1 to 8,192, default 4,096. */
  public WriterOptions withBatchPointsMax(int points) {
    if (points < 1 || points > Backlog.RECORD_POINTS_MAX) {
      throw new IllegalArgumentException("batchPointsMax is 1 to 8192: " + points);
    }
    return new WriterOptions(open, points, linger, windowPoints, whenFull, onRejection);
  }

  /** Sets how long a record waits for company. Default: 50 ms. */
  public WriterOptions withLinger(Duration duration) {
    if (duration.isNegative()) {
      throw new IllegalArgumentException("linger is at least 0: " + duration);
    }
    return new WriterOptions(open, batchPointsMax, duration, windowPoints, whenFull, onRejection);
  }

  /** Sets how many points may be logged and not acknowledged. Default: 1,048,576. */
  public WriterOptions withWindowPoints(int points) {
    if (points < 1) {
      throw new IllegalArgumentException("windowPoints is at least 1: " + points);
    }
    return new WriterOptions(open, batchPointsMax, linger, points, whenFull, onRejection);
  }

  /** Sets what {@code log} does when the window is full. Default: {@link WhenFull#BLOCK}. */
  public WriterOptions withWhenFull(WhenFull choice) {
    return new WriterOptions(open, batchPointsMax, linger, windowPoints, choice, onRejection);
  }

  /**
   * Is told of points that were rejected for their content. One call at a time, on a thread of the
   * writer, which waits for it: it must not wait for the writer.
   */
  public WriterOptions withOnRejection(Consumer<Rejection> callback) {
    return new WriterOptions(open, batchPointsMax, linger, windowPoints, whenFull, callback);
  }

  /** Returns the message that opens the writer, with the ids that were left to choose. */
  OpenWriter open() {
    return open.getWriterId().isEmpty() ? withWriterId(Ids.newId(), Ids.newId()).open : open;
  }

  int batchPointsMax() {
    return batchPointsMax;
  }

  Duration linger() {
    return linger;
  }

  int windowPoints() {
    return windowPoints;
  }

  WhenFull whenFull() {
    return whenFull;
  }

  Consumer<Rejection> onRejection() {
    return onRejection;
  }

  private WriterOptions with(OpenWriter.Builder opening) {
    return new WriterOptions(
        opening.build(), batchPointsMax, linger, windowPoints, whenFull, onRejection);
  }
}
