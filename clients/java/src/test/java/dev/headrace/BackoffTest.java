package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.Code;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.headrace.v1.ErrorReason;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.Map;
import org.junit.jupiter.api.Test;

class BackoffTest {
  private static final Map<ErrorReason, Retry> RETRIED =
      Map.ofEntries(
          Map.entry(ErrorReason.ERROR_REASON_SEQUENCE_GAP, Retry.RESUME),
          Map.entry(ErrorReason.ERROR_REASON_UNKNOWN_KEY_INDEX, Retry.RESUME),
          Map.entry(ErrorReason.ERROR_REASON_TRANSFER_STALLED, Retry.RESUME),
          Map.entry(ErrorReason.ERROR_REASON_DIGEST_MISMATCH, Retry.RESUME),
          Map.entry(ErrorReason.ERROR_REASON_UPLOAD_NOT_FOUND, Retry.RESUME),
          Map.entry(ErrorReason.ERROR_REASON_UPLOAD_INCOMPLETE, Retry.RESUME),
          Map.entry(ErrorReason.ERROR_REASON_OVERLOADED, Retry.LATER),
          Map.entry(ErrorReason.ERROR_REASON_STORE_UNAVAILABLE, Retry.LATER),
          Map.entry(ErrorReason.ERROR_REASON_DRAINING, Retry.LATER),
          Map.entry(ErrorReason.ERROR_REASON_INTERNAL, Retry.LATER),
          Map.entry(ErrorReason.ERROR_REASON_BLOB_STORE_UNAVAILABLE, Retry.LATER));

  @Test
  void waitsGrowAndStayBelowTheirLimit() {
    Backoff backoff = new Backoff();
    HeadraceException unavailable = new HeadraceException(Status.Code.UNAVAILABLE, "away");
    for (int attempt = 0; attempt < 100; attempt++) {
      Duration wait = backoff.next(unavailable).orElseThrow();
      assertTrue(wait.compareTo(Backoff.FIRST.dividedBy(2)) >= 0, wait::toString);
      assertTrue(wait.compareTo(Backoff.MAX) <= 0, wait::toString);
      assertTrue(attempt < 10 || wait.compareTo(Backoff.MAX.dividedBy(2)) >= 0, wait::toString);
    }
  }

  @Test
  void theGatewayMayAskForALongerWait() {
    HeadraceException patient = told("OVERLOADED", Duration.ofMinutes(1));
    assertEquals(Duration.ofMinutes(1), new Backoff().next(patient).orElseThrow());
  }

  @Test
  void failuresThatResumingDoesNotCureEnd() {
    Backoff backoff = new Backoff();
    HeadraceException gap = told("SEQUENCE_GAP", Duration.ZERO);
    for (int attempt = 0; attempt < Backoff.RESUMES_MAX; attempt++) {
      assertTrue(backoff.next(gap).isPresent());
    }
    assertTrue(backoff.next(gap).isEmpty());
    backoff.progress();
    assertTrue(backoff.next(gap).isPresent());
  }

  @Test
  void everyReasonOfTheContractHasARemedy() {
    for (ErrorReason reason : ErrorReason.values()) {
      if (reason != ErrorReason.UNRECOGNIZED && reason != ErrorReason.ERROR_REASON_UNSPECIFIED) {
        HeadraceException failure = told(HeadraceException.nameOf(reason), Duration.ZERO);
        assertEquals(reason, failure.reason());
        assertEquals(RETRIED.getOrDefault(reason, Retry.NEVER), Retry.after(failure));
      }
    }
  }

  @Test
  void whatANewerGatewaySaysIsJudgedByItsStatus() {
    HeadraceException newer = told("NOT_YET_INVENTED", Duration.ZERO);
    assertEquals(ErrorReason.UNRECOGNIZED, newer.reason());
    assertEquals("NOT_YET_INVENTED: no", newer.getMessage());
    assertEquals(Retry.LATER, Retry.after(newer));
    HeadraceException noGateway = new HeadraceException(Status.Code.UNIMPLEMENTED, "what?");
    assertEquals(Retry.NEVER, Retry.after(noGateway));
  }

  /** Returns the exception of a failure with the status UNAVAILABLE as it comes from a gateway. */
  private static HeadraceException told(String reason, Duration retryAfter) {
    com.google.rpc.Status status =
        com.google.rpc.Status.newBuilder()
            .setCode(Code.UNAVAILABLE_VALUE)
            .setMessage("no")
            .addDetails(Any.pack(ErrorInfo.newBuilder().setReason(reason).build()))
            .addDetails(
                Any.pack(
                    RetryInfo.newBuilder()
                        .setRetryDelay(
                            com.google.protobuf.Duration.newBuilder()
                                .setSeconds(retryAfter.toSeconds()))
                        .build()))
            .build();
    return HeadraceException.of(StatusProto.toStatusRuntimeException(status));
  }
}
