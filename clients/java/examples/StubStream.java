import dev.headrace.v1.*;
import io.grpc.*;
import io.grpc.stub.StreamObserver;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;

/** Streams metrics with nothing but protoc's output. Argument: HOST:PORT. */
class StubStream {
  public static void main(String[] arguments) {
    var channel = Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create()).build();
    String run = newId();
    RunServiceGrpc.newBlockingStub(channel)
        .createRun(CreateRunRequest.newBuilder().setRunId(run).build());
    var finished = new CompletableFuture<Finished>();
    var responses = new StreamObserver<WriteMetricsResponse>() {
          public void onNext(WriteMetricsResponse response) {
            if (response.hasFinished()) finished.complete(response.getFinished());
          }
          public void onError(Throwable failure) { finished.completeExceptionally(failure); }
          public void onCompleted() {}
        };
    var stream = MetricServiceGrpc.newStub(channel).writeMetrics(responses);
    var requests = WriteMetricsRequest.newBuilder();
    var writer = OpenWriter.newBuilder().setRunId(run).setWriterId(newId()).setIncarnation(newId());
    stream.onNext(requests.setOpen(writer).build());
    var loss = KeyDefinition.newBuilder().setIndex(0).setKey("loss");
    stream.onNext(requests.setKeys(DefineKeys.newBuilder().addKeys(loss)).build());
    for (int n = 1; n <= 100; n++) {
      var batch = MetricBatch.newBuilder().setFirstSequence(n).setRecordCount(1).addSeriesIndex(0)
          .addStep(n).addTimeUnixUs(System.currentTimeMillis() * 1_000).addValue(1.0 / n);
      stream.onNext(requests.setBatch(batch).build());
    }
    stream.onNext(requests.setFinish(FinishWriter.newBuilder().setLastSequence(100)).build());
    System.out.println(run + " " + finished.join().getCounters().getAcceptedPoints());
    channel.shutdown();
  }

  static String newId() { return UUID.randomUUID().toString().replace("-", ""); }
}
