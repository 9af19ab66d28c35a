package dev.headrace;

import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.util.Iterator;

/** Calls that stream requests and are answered by one response, made by a thread that waits. */
final class ClientStreaming {
  private ClientStreaming() {}

  /** A method of an asynchronous stub. */
  interface Method<RequestT, ResponseT> {
    StreamObserver<RequestT> start(StreamObserver<ResponseT> responses);
  }

  /**
   * Sends the requests as fast as the call takes them, and no more once it is answered.
   *
   * @throws HeadraceException the call failed, or the thread was interrupted
   */
  static <RequestT, ResponseT> ResponseT call(
      Method<RequestT, ResponseT> method, Iterator<RequestT> requests) {
    Signal signal = new Signal();
    Exchange<RequestT, ResponseT> exchange = new Exchange<>(signal);
    method.start(exchange);
    boolean over = false;
    try {
      ResponseT answer = converse(exchange, signal, requests);
      over = true;
      return answer;
    } catch (InterruptedException interrupted) {
      throw HeadraceException.interrupted();
    } finally {
      if (!over) {
        exchange.cancel("the client gave up");
      }
    }
  }

  private static <RequestT, ResponseT> ResponseT converse(
      Exchange<RequestT, ResponseT> exchange, Signal signal, Iterator<RequestT> requests)
      throws InterruptedException {
    ResponseT answer = null;
    boolean sendingIsOver = false;
    while (!exchange.isOver()) {
      ResponseT arrived = exchange.poll();
      if (arrived != null) {
        answer = arrived;
      } else if (sendingIsOver || answer != null || !exchange.isReady()) {
        signal.await(Long.MAX_VALUE);
      } else if (requests.hasNext()) {
        exchange.send(requests.next());
      } else {
        exchange.halfClose();
        sendingIsOver = true;
      }
    }
    exchange
        .failure()
        .ifPresent(
            failure -> {
              throw failure;
            });
    if (answer == null) {
      throw new HeadraceException(Status.Code.INTERNAL, "the call ended without a response");
    }
    return answer;
  }
}
