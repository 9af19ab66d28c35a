package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.headrace.v1.HeartbeatRunRequest;
import dev.headrace.v1.HeartbeatRunResponse;
import dev.headrace.v1.RunServiceGrpc;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(60)
class SeveralAddressesTest {
  private static final String NOBODY = "127.0.0.1:1";

  private final Heartbeats first = new Heartbeats();
  private final Heartbeats second = new Heartbeats();
  private final Server one = started(first);
  private final Server other = started(second);

  @AfterEach
  void stop() {
    one.shutdownNow();
    other.shutdownNow();
  }

  @Test
  void callsTakeTurnsAndPassByWhoIsAway() {
    String addresses =
        "127.0.0.1:" + one.getPort() + "," + NOBODY + ",localhost:" + other.getPort();
    try (Client client = Client.connect(addresses)) {
      while (first.count.get() == 0 || second.count.get() == 0) { // until both are connected
        client.heartbeatRun("r");
      }
      int before = first.count.get();
      for (int call = 0; call < 20; call++) {
        client.heartbeatRun("r");
      }
      assertTrue(first.count.get() - before >= 5, "one server got nearly none of the calls");
      assertTrue(first.count.get() - before <= 15, "one server got nearly all of the calls");
    }
  }

  @Test
  void whenAllAreAwayACallSaysSo() {
    try (Client client = Client.connect(NOBODY + "," + NOBODY)) {
      HeadraceException failure =
          assertThrows(HeadraceException.class, () -> client.heartbeatRun("r"));
      assertEquals(Status.Code.UNAVAILABLE, failure.code());
    }
  }

  private static Server started(Heartbeats service) {
    try {
      return Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
          .addService(service)
          .build()
          .start();
    } catch (IOException failure) {
      throw new IllegalStateException(failure);
    }
  }

  private static final class Heartbeats extends RunServiceGrpc.RunServiceImplBase {
    private final AtomicInteger count = new AtomicInteger();

    @Override
    public void heartbeatRun(
        HeartbeatRunRequest request, StreamObserver<HeartbeatRunResponse> response) {
      count.incrementAndGet();
      response.onNext(HeartbeatRunResponse.getDefaultInstance());
      response.onCompleted();
    }
  }
}
