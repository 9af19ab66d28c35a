package dev.headrace;

import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/** The records that are logged and not acknowledged. The writer's lock guards it. */
final class Backlog {
  /** Of a batch; and a record fits a batch. */
  static final int RECORD_POINTS_MAX = 8_192;

  private final int batchPointsMax;
  private final List<Block> blocks = new ArrayList<>();
  private long lastSequence;
  private int points;

  Backlog(int batchPointsMax) {
    this.batchPointsMax = batchPointsMax;
  }

  /** Returns the number of the last record logged. */
  long lastSequence() {
    return lastSequence;
  }

  /** Returns how many points are logged and not acknowledged. */
  int points() {
    return points;
  }

  /**
   * Adds the points of one log call as a record, or as several when they are too many for one.
   *
   * @param nowNanos by {@link System#nanoTime()}
   * @return whether the sender should look: a block has begun or is full
   */
  boolean add(long step, long timeUnixUs, int[] index, double[] value, int count, long nowNanos) {
    boolean ready = false;
    int from = 0;
    do {
      int some = Math.min(count - from, RECORD_POINTS_MAX);
      Block block = blockFor(some, nowNanos);
      block.add(step, timeUnixUs, index, value, from, some);
      lastSequence++;
      points += some;
      from += some;
      if (block.points() >= batchPointsMax) {
        block.seal();
      }
      ready |= block.isSealed() || block.firstSequence() == lastSequence;
    } while (from < count);
    return ready;
  }

  /** Drops the records up to {@code committed}. */
  void forget(long committed) {
    int done = 0;
    for (Block block : blocks) {
      if (committed < block.firstSequence()) {
        break;
      }
      points -= block.acknowledge(committed);
      if (committed < block.lastSequence()) {
        break;
      }
      done++;
    }
    blocks.subList(0, done).clear();
  }

  /** Returns the block with the record; nothing when there is none yet. */
  Optional<Block> find(long sequence) {
    int low = 0;
    int high = blocks.size();
    while (low < high) {
      int middle = (low + high) / 2;
      if (blocks.get(middle).lastSequence() < sequence) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < blocks.size() ? Optional.of(blocks.get(low)) : Optional.empty();
  }

  private Block blockFor(int count, long nowNanos) {
    if (!blocks.isEmpty()) {
      Block last = blocks.get(blocks.size() - 1);
      if (!last.isSealed() && last.points() + count <= batchPointsMax) {
        return last;
      }
      last.seal();
    }
    // A writer that logs little needs no large blocks.
    int capacity = Math.min(4 * count, Math.max(count, batchPointsMax));
    Block block = new Block(lastSequence + 1, nowNanos, capacity);
    blocks.add(block);
    return block;
  }
}
