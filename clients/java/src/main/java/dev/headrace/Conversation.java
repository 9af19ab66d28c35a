package dev.headrace;

import dev.headrace.v1.Ack;
import dev.headrace.v1.DefineKeys;
import dev.headrace.v1.FinishWriter;
import dev.headrace.v1.Finished;
import dev.headrace.v1.Heartbeat;
import dev.headrace.v1.KeyDefinition;
import dev.headrace.v1.MetricServiceGrpc.MetricServiceStub;
import dev.headrace.v1.OpenWriter;
import dev.headrace.v1.Opened;
import dev.headrace.v1.Reconnect;
import dev.headrace.v1.Resync;
import dev.headrace.v1.WriteMetricsRequest;
import dev.headrace.v1.WriteMetricsResponse;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * One stream of a writer, from {@code open} to its end. Of the sender's thread, which never waits
 * for anything but the next event: a response, room to send, a call of the user's, a time.
 */
final class Conversation {
  private static final long HEARTBEAT_MS = 15_000; // of a gateway that says nothing else

  /** 500 keys of 251 characters of 4 bytes stay below the message limit of 1 MiB. */
  private static final int KEYS_PER_MESSAGE = 500;

  private final Writer writer;
  private final Rejections rejections;
  private final Signal signal;
  private final Exchange<WriteMetricsRequest, WriteMetricsResponse> exchange;

  private boolean opened;
  private boolean sendingIsOver;
  private Optional<Duration> moveAfter = Optional.empty();
  private Optional<HeadraceException> violation = Optional.empty();
  private long nextSequence;
  private int keysSent;
  private long heartbeatNanos;
  private long lastSentNanos;

  /** Begins the stream. */
  Conversation(Writer writer, Rejections rejections, Signal signal, MetricServiceStub metrics) {
    this.writer = writer;
    this.rejections = rejections;
    this.signal = signal;
    exchange = new Exchange<>(signal);
    metrics.writeMetrics(exchange);
  }

  /**
   * Holds the conversation until its end, or until the writer is closed.
   *
   * @return why it failed or ended too soon; nothing when the writer is closed
   */
  Optional<HeadraceException> hold(OpenWriter open) throws InterruptedException {
    send(WriteMetricsRequest.newBuilder().setOpen(open));
    while (!writer.isClosed()) {
      rejections.deliverOwn();
      WriteMetricsResponse response = exchange.poll();
      if (response != null) {
        take(response);
      } else if (exchange.isOver()) {
        return violation
            .or(exchange::failure)
            .or(
                () ->
                    Optional.of(
                        new HeadraceException(
                            Status.Code.OK, "the stream ended before the writer finished")));
      } else {
        signal.await(sendSome());
      }
    }
    exchange.cancel("the writer is closed");
    return Optional.empty();
  }

  /** Returns how long to wait before the next stream, when the gateway has asked to move. */
  Optional<Duration> moveAfter() {
    return moveAfter;
  }

  private void take(WriteMetricsResponse response) {
    switch (response.getMessageCase()) {
      case OPENED -> takeOpened(response.getOpened());
      case ACK -> takeAck(response.getAck());
      case RECONNECT -> takeReconnect(response.getReconnect());
      case FINISHED -> takeFinished(response.getFinished());
      case MESSAGE_NOT_SET -> {} // of a newer gateway
    }
    if (!opened && violation.isEmpty()) {
      violation = Optional.of(new HeadraceException(Status.Code.UNIMPLEMENTED, "no `opened`"));
      exchange.cancel("expected `opened`");
    }
  }

  private void takeOpened(Opened message) {
    long known = writer.committedSequence();
    writer.streamOpened();
    rejections.deliver(message.getRejectionsList());
    writer.progress(message.getCommittedSequence(), message.getCounters());
    int interval = message.getLimits().getHeartbeatIntervalMs();
    heartbeatNanos = TimeUnit.MILLISECONDS.toNanos(interval == 0 ? HEARTBEAT_MS : interval) * 2 / 3;
    nextSequence = Math.max(known, message.getCommittedSequence()) + 1;
    opened = true;
    if (message.getCommittedSequence() < known) { // records that are forgotten here are lost there
      Resync resync = Resync.newBuilder().setFirstSequence(nextSequence).build();
      send(WriteMetricsRequest.newBuilder().setResync(resync));
    }
  }

  private void takeAck(Ack ack) {
    rejections.deliver(ack.getRejectionsList());
    writer.progress(ack.getCommittedSequence(), ack.getCounters());
  }

  private void takeReconnect(Reconnect reconnect) {
    writer.reconnects();
    long spanMs = Integer.toUnsignedLong(reconnect.getRetryAfterMs());
    moveAfter = Optional.of(Duration.ofMillis(ThreadLocalRandom.current().nextLong(spanMs + 1)));
    endSending();
  }

  private void takeFinished(Finished message) {
    writer.progress(message.getCommittedSequence(), message.getCounters());
    writer.finished();
  }

  /** Sends what there is and the stream takes. Returns after how many nanoseconds to look again. */
  private long sendSome() {
    while (opened && !sendingIsOver && exchange.isReady()) {
      Turn turn = writer.next(nextSequence, keysSent);
      if (turn instanceof Turn.Send records) {
        define(records.newKeys());
        send(
            WriteMetricsRequest.newBuilder()
                .setBatch(records.block().batchFrom(records.sequence())));
        nextSequence = records.block().lastSequence() + 1;
      } else if (turn instanceof Turn.Finish end) {
        FinishWriter finish = FinishWriter.newBuilder().setLastSequence(end.lastSequence()).build();
        send(WriteMetricsRequest.newBuilder().setFinish(finish));
        endSending();
      } else if (turn instanceof Turn.Wait wait) {
        long untilHeartbeat = heartbeatNanos - (System.nanoTime() - lastSentNanos);
        if (untilHeartbeat > 0) {
          return Math.min(wait.nanos(), untilHeartbeat);
        }
        send(WriteMetricsRequest.newBuilder().setHeartbeat(Heartbeat.getDefaultInstance()));
      }
    }
    return Long.MAX_VALUE;
  }

  private void define(List<String> names) {
    for (int from = 0; from < names.size(); from += KEYS_PER_MESSAGE) {
      DefineKeys.Builder keys = DefineKeys.newBuilder();
      for (String name : names.subList(from, Math.min(names.size(), from + KEYS_PER_MESSAGE))) {
        keys.addKeys(KeyDefinition.newBuilder().setIndex(keysSent++).setKey(name));
      }
      send(WriteMetricsRequest.newBuilder().setKeys(keys));
    }
  }

  private void send(WriteMetricsRequest.Builder request) {
    exchange.send(request.build());
    lastSentNanos = System.nanoTime();
  }

  private void endSending() {
    if (!sendingIsOver) {
      sendingIsOver = true;
      exchange.halfClose();
    }
  }
}
