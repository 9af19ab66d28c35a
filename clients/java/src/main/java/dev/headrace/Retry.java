package dev.headrace;

import java.util.Optional;

/** What the contract says that a client does after a failure. */
enum Retry {
  /** The same message would fail again. */
  NEVER,
  /** Go on at once from what the gateway has; a defect if it recurs without progress. */
  RESUME,
  /** Go on after a wait. */
  LATER;

  static Retry after(HeadraceException failure) {
    return afterReason(failure).orElseGet(() -> afterCode(failure));
  }

  /** Returns nothing for a failure without a reason, or with one of a newer contract. */
  private static Optional<Retry> afterReason(HeadraceException failure) {
    return switch (failure.reason()) {
      case ERROR_REASON_UNSPECIFIED, UNRECOGNIZED -> Optional.empty();
      case ERROR_REASON_SEQUENCE_GAP,
          ERROR_REASON_UNKNOWN_KEY_INDEX,
          ERROR_REASON_TRANSFER_STALLED,
          ERROR_REASON_DIGEST_MISMATCH,
          ERROR_REASON_UPLOAD_NOT_FOUND,
          ERROR_REASON_UPLOAD_INCOMPLETE ->
          Optional.of(RESUME);
      case ERROR_REASON_OVERLOADED,
          ERROR_REASON_STORE_UNAVAILABLE,
          ERROR_REASON_DRAINING,
          ERROR_REASON_INTERNAL,
          ERROR_REASON_BLOB_STORE_UNAVAILABLE ->
          Optional.of(LATER);
      default -> Optional.of(NEVER);
    };
  }

  private static Retry afterCode(HeadraceException failure) {
    return switch (failure.code()) {
      case OK,
          UNAVAILABLE,
          UNKNOWN,
          INTERNAL,
          CANCELLED,
          ABORTED,
          DEADLINE_EXCEEDED,
          RESOURCE_EXHAUSTED ->
          LATER;
      default -> NEVER;
    };
  }
}
