package dev.headrace;

import io.grpc.Status;

/**
 * Says that {@code log} found the window of unacknowledged points full and the writer was opened
 * with {@link WhenFull#ERROR}. The record was not logged.
 */
public final class WindowFullException extends HeadraceException {
  private static final long serialVersionUID = 1;

  WindowFullException(int windowPoints) {
    super(
        Status.Code.RESOURCE_EXHAUSTED,
        "the window of " + windowPoints + " unacknowledged points is full");
  }
}
