package dev.headrace;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.headrace.v1.ErrorReason;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.Map;

/**
 * A failure that the gateway reported, a call that did not reach it, or a wait that ended too soon.
 */
public class HeadraceException extends RuntimeException {
  private static final long serialVersionUID = 1;
  private static final String REASON_PREFIX = "ERROR_REASON_";

  private final ErrorReason reason;
  private final Status.Code code;
  private final transient Map<String, String> metadata;
  private final Duration retryAfter;

  HeadraceException(Status.Code code, String message) {
    this(code, ErrorReason.ERROR_REASON_UNSPECIFIED, code + ": " + message, null);
  }

  HeadraceException(Status.Code code, ErrorReason reason, String message) {
    this(code, reason, nameOf(reason) + ": " + message, null);
  }

  private HeadraceException(Status.Code code, ErrorReason reason, String message, Throwable cause) {
    this(code, reason, message, Map.of(), Duration.ZERO, cause);
  }

  private HeadraceException(
      Status.Code code,
      ErrorReason reason,
      String message,
      Map<String, String> metadata,
      Duration retryAfter,
      Throwable cause) {
    super(message, cause);
    this.code = code;
    this.reason = reason;
    this.metadata = Map.copyOf(metadata);
    this.retryAfter = retryAfter;
  }

  /**
   * Returns why the gateway refused: {@code ERROR_REASON_UNSPECIFIED} when the failure carried no
   * reason, because it did not come from a gateway but from the connection to it or from this
   * library; {@code UNRECOGNIZED} when it is a reason of a newer contract.
   */
  public final ErrorReason reason() {
    return reason;
  }

  /** Returns the gRPC status. */
  public final Status.Code code() {
    return code;
  }

  /** Returns the offending field, value and limit, where they apply. */
  public final Map<String, String> metadata() {
    return metadata == null ? Map.of() : metadata; // null in an exception that was deserialized
  }

  /** Returns how long the gateway asks to wait before the call is repeated. */
  final Duration retryAfter() {
    return retryAfter;
  }

  /** Returns the name of a reason without its prefix, for example {@code RUN_NOT_FOUND}. */
  static String nameOf(ErrorReason reason) {
    return reason
        .name()
        .substring(reason.name().startsWith(REASON_PREFIX) ? REASON_PREFIX.length() : 0);
  }

  static HeadraceException of(StatusRuntimeException failure) {
    Status.Code code = failure.getStatus().getCode();
    String reasonName = "";
    Map<String, String> metadata = Map.of();
    Duration retryAfter = Duration.ZERO;
    com.google.rpc.Status status = StatusProto.fromThrowable(failure);
    if (status != null) {
      try {
        for (Any detail : status.getDetailsList()) {
          if (detail.is(ErrorInfo.class)) {
            ErrorInfo info = detail.unpack(ErrorInfo.class);
            reasonName = info.getReason();
            metadata = info.getMetadataMap();
          } else if (detail.is(RetryInfo.class)) {
            var delay = detail.unpack(RetryInfo.class).getRetryDelay();
            retryAfter = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
          }
        }
      } catch (InvalidProtocolBufferException damaged) {
        failure.addSuppressed(damaged);
      }
    }
    String description = failure.getStatus().getDescription();
    return new HeadraceException(
        code,
        reasonOf(reasonName),
        (reasonName.isEmpty() ? code : reasonName)
            + ": "
            + (description == null ? "" : description),
        metadata,
        retryAfter,
        failure);
  }

  /** Returns the same failure for another thread to throw, with that thread's stack. */
  HeadraceException again() {
    return new HeadraceException(code, reason, getMessage(), metadata(), retryAfter, this);
  }

  static HeadraceException interrupted() {
    Thread.currentThread().interrupt();
    return new HeadraceException(Status.Code.CANCELLED, "the thread was interrupted");
  }

  static HeadraceException internal(Throwable defect) {
    return new HeadraceException(
        Status.Code.INTERNAL,
        ErrorReason.ERROR_REASON_UNSPECIFIED,
        "a defect of the client: " + defect,
        defect);
  }

  private static ErrorReason reasonOf(String name) {
    if (name.isEmpty()) {
      return ErrorReason.ERROR_REASON_UNSPECIFIED;
    }
    try {
      return ErrorReason.valueOf(REASON_PREFIX + name);
    } catch (IllegalArgumentException newer) {
      return ErrorReason.UNRECOGNIZED;
    }
  }
}
