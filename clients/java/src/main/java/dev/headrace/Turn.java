package dev.headrace;

import java.util.List;

/** What a writer wants its sender to do next. */
sealed interface Turn {
  /**
   * Define the new keys and send the block's records from {@code sequence} on.
   *
   * @param newKeys the keys that this stream was not told of yet, in the order of their indexes
   */
  record Send(Block block, long sequence, List<String> newKeys) implements Turn {}

  /** Say that the writer ends with this record. */
  record Finish(long lastSequence) implements Turn {}

  /** Look again when something happens, or after so long. */
  record Wait(long nanos) implements Turn {}
}
