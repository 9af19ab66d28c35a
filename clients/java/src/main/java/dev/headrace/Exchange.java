package dev.headrace;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.util.Optional;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;

/**
 * One call that streams requests, as seen by the one thread that owns it.
 *
 * <p>What gRPC reports on threads of its own is kept for the owner, who is signalled and looks: has
 * something arrived, may more be sent, has the call ended? No method waits.
 */
final class Exchange<RequestT, ResponseT> implements ClientResponseObserver<RequestT, ResponseT> {
  private static final int UNREAD_RESPONSES_MAX = 16;

  private final Signal owner;
  private final Queue<ResponseT> responses = new ConcurrentLinkedQueue<>();
  private ClientCallStreamObserver<RequestT> requests;
  private StatusRuntimeException failure;
  private volatile boolean ended;

  /** Makes the observer to start a call with, which raises {@code owner} at every event. */
  Exchange(Signal owner) {
    this.owner = owner;
  }

  /** Returns whether the call has ended and all responses were polled. */
  boolean isOver() {
    return ended && responses.isEmpty();
  }

  /** Returns why a call that is over failed; nothing when it ended in good order. */
  Optional<HeadraceException> failure() {
    return Optional.ofNullable(failure).map(HeadraceException::of);
  }

  /** Returns the next response, or null when none has arrived. */
  ResponseT poll() {
    ResponseT response = responses.poll();
    if (response != null) {
      requests.request(1);
    }
    return response;
  }

  /** Returns whether a message can be sent without being buffered for long. */
  boolean isReady() {
    return requests.isReady();
  }

  void send(RequestT request) {
    requests.onNext(request);
  }

  void halfClose() {
    requests.onCompleted();
  }

  void cancel(String reason) {
    requests.cancel(reason, null);
  }

  @Override
  public void beforeStart(ClientCallStreamObserver<RequestT> stream) {
    requests = stream;
    stream.disableAutoRequestWithInitial(UNREAD_RESPONSES_MAX);
    stream.setOnReadyHandler(owner::raise);
  }

  @Override
  public void onNext(ResponseT response) {
    responses.add(response);
    owner.raise();
  }

  @Override
  public void onError(Throwable cause) {
    failure = Status.fromThrowable(cause).asRuntimeException(Status.trailersFromThrowable(cause));
    onCompleted();
  }

  @Override
  public void onCompleted() {
    ended = true;
    owner.raise();
  }
}
