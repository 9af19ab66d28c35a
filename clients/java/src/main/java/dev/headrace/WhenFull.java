package dev.headrace;

/** What {@code log} does when the window of unacknowledged points is full. */
public enum WhenFull {
  /** Waits until the gateway has acknowledged enough. */
  BLOCK,
  /** Throws {@link WindowFullException}; the record is not logged. */
  ERROR
}
