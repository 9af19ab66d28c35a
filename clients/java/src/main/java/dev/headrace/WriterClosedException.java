package dev.headrace;

import io.grpc.Status;

/** Says that the writer was finished or closed by its user. */
public final class WriterClosedException extends HeadraceException {
  private static final long serialVersionUID = 1;

  WriterClosedException() {
    super(Status.Code.FAILED_PRECONDITION, "the writer is closed");
  }
}
