package dev.headrace;

import dev.headrace.v1.MetricBatch;
import java.util.Arrays;

/**
 * Consecutive records as columns: what becomes one batch, or, after a resume in its middle, the
 * rest of one.
 *
 * <p>The writer's lock guards it until it is sealed. From then on the columns do not change.
 */
final class Block {
  private static final int RECORDS_AT_FIRST = 16;

  private final long firstSequence;
  private final long startedNanos;
  private boolean sealed;

  private int records;
  private long[] steps = new long[RECORDS_AT_FIRST]; // of each record
  private long[] timesUnixUs = new long[RECORDS_AT_FIRST];
  private int[] ends = new int[RECORDS_AT_FIRST]; // how many points the records up to it have

  private int points;
  private int acknowledgedPoints;
  private int[] indexes; // of each point
  private double[] values;

  /**
   * Begins a block.
   *
   * @param startedNanos when, by {@link System#nanoTime()}
   * @param capacity how many points it will probably have
   */
  Block(long firstSequence, long startedNanos, int capacity) {
    this.firstSequence = firstSequence;
    this.startedNanos = startedNanos;
    indexes = new int[capacity];
    values = new double[capacity];
  }

  long firstSequence() {
    return firstSequence;
  }

  long lastSequence() {
    return firstSequence + records - 1;
  }

  long startedNanos() {
    return startedNanos;
  }

  int points() {
    return points;
  }

  boolean isSealed() {
    return sealed;
  }

  /** Takes no more records. */
  void seal() {
    sealed = true;
  }

  /** Adds a record of the given points. */
  void add(long step, long timeUnixUs, int[] index, double[] value, int from, int count) {
    if (records == ends.length) {
      steps = Arrays.copyOf(steps, 2 * records);
      timesUnixUs = Arrays.copyOf(timesUnixUs, 2 * records);
      ends = Arrays.copyOf(ends, 2 * records);
    }
    if (points + count > indexes.length) {
      int capacity = Math.max(points + count, 2 * indexes.length);
      indexes = Arrays.copyOf(indexes, capacity);
      values = Arrays.copyOf(values, capacity);
    }
    System.arraycopy(index, from, indexes, points, count);
    System.arraycopy(value, from, values, points, count);
    points += count;
    steps[records] = step;
    timesUnixUs[records] = timeUnixUs;
    ends[records] = points;
    records++;
  }

  /** Notes that the records up to {@code sequence} are acknowledged; returns their new points. */
  int acknowledge(long sequence) {
    int before = acknowledgedPoints;
    acknowledgedPoints = pointsBefore(Math.min(sequence, lastSequence()) + 1);
    return acknowledgedPoints - before;
  }

  /** Returns the records from {@code sequence} on. */
  MetricBatch batchFrom(long sequence) {
    MetricBatch.Builder batch =
        MetricBatch.newBuilder()
            .setFirstSequence(sequence)
            .setRecordCount((int) (lastSequence() - sequence + 1));
    int point = pointsBefore(sequence);
    for (int record = (int) (sequence - firstSequence); record < records; record++) {
      for (; point < ends[record]; point++) {
        batch
            .addSeriesIndex(indexes[point])
            .addStep(steps[record])
            .addTimeUnixUs(timesUnixUs[record])
            .addValue(values[point]);
      }
    }
    return batch.build();
  }

  private int pointsBefore(long sequence) {
    return sequence <= firstSequence ? 0 : ends[(int) (sequence - firstSequence - 1)];
  }
}
