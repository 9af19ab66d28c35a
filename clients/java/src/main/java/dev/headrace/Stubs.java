package dev.headrace;

import dev.headrace.v1.ArtifactServiceGrpc;
import dev.headrace.v1.ArtifactServiceGrpc.ArtifactServiceBlockingStub;
import dev.headrace.v1.ArtifactServiceGrpc.ArtifactServiceStub;
import dev.headrace.v1.MetricServiceGrpc;
import dev.headrace.v1.MetricServiceGrpc.MetricServiceBlockingStub;
import dev.headrace.v1.MetricServiceGrpc.MetricServiceStub;
import dev.headrace.v1.RunServiceGrpc;
import dev.headrace.v1.RunServiceGrpc.RunServiceBlockingStub;
import io.grpc.Channel;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.concurrent.Executor;
import java.util.function.Supplier;

/** The generated stubs of the three services on one channel. */
record Stubs(
    RunServiceBlockingStub runs,
    MetricServiceBlockingStub metrics,
    MetricServiceStub metricsAsync,
    ArtifactServiceBlockingStub artifacts,
    ArtifactServiceStub artifactsAsync,
    Duration callTimeout) {

  /** An {@link Exchange} takes in what gRPC reports at once: it needs no thread for it. */
  private static final Executor AT_ONCE = Runnable::run;

  static Stubs of(Channel channel, Duration callTimeout) {
    return new Stubs(
        RunServiceGrpc.newBlockingStub(channel),
        MetricServiceGrpc.newBlockingStub(channel),
        MetricServiceGrpc.newStub(channel).withExecutor(AT_ONCE),
        ArtifactServiceGrpc.newBlockingStub(channel),
        ArtifactServiceGrpc.newStub(channel).withExecutor(AT_ONCE),
        callTimeout);
  }

  /** Makes a call; its failure becomes one of this library. */
  static <T> T translated(Supplier<T> call) {
    try {
      return call.get();
    } catch (StatusRuntimeException failure) {
      throw HeadraceException.of(failure);
    }
  }
}
