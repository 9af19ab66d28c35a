package dev.headrace;

import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptor;
import io.grpc.ConnectivityState;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;

/** Makes channels to gateways. */
final class Channels {
  private static final long KEEPALIVE_S = 60; // a gateway permits 20
  private static final long KEEPALIVE_TIMEOUT_S = 20;
  private static final Executor SOON =
      CompletableFuture.delayedExecutor(500, TimeUnit.MILLISECONDS);
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private Channels() {}

  /** Returns a channel; it does not wait for the gateway. */
  static ManagedChannel to(Addresses addresses, ConnectOptions options) {
    if (options.tls().isPresent() && !addresses.encrypted()) {
      throw new IllegalArgumentException("TLS needs addresses that begin with https://");
    }
    String target =
        addresses.hosts().size() == 1
            ? "dns:///" + addresses.hosts().get(0)
            : SeveralAddresses.targetOf(addresses.hosts());
    ManagedChannelBuilder<?> builder =
        Grpc.newChannelBuilder(target, credentials(addresses, options))
            .defaultLoadBalancingPolicy("round_robin")
            .keepAliveTime(KEEPALIVE_S, TimeUnit.SECONDS)
            .keepAliveTimeout(KEEPALIVE_TIMEOUT_S, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true);
    if (!options.token().isEmpty()) {
      builder.intercept(bearing(options.token()));
    }
    ManagedChannel channel = builder.build();
    keepBackoffShort(channel);
    return channel;
  }

  private static ChannelCredentials credentials(Addresses addresses, ConnectOptions options) {
    return addresses.encrypted()
        ? options.tls().orElseGet(TlsChannelCredentials::create)
        : InsecureChannelCredentials.create();
  }

  private static ClientInterceptor bearing(String token) {
    Metadata metadata = new Metadata();
    metadata.put(AUTHORIZATION, "Bearer " + token);
    return MetadataUtils.newAttachHeadersInterceptor(metadata);
  }

  /**
   * Connects again soon, for as long as a channel cannot: by itself it would wait for up to two
   * minutes, and has no option to be told otherwise.
   */
  private static void keepBackoffShort(ManagedChannel channel) {
    ConnectivityState state = channel.getState(false);
    if (state == ConnectivityState.SHUTDOWN) {
      return;
    }
    if (state == ConnectivityState.TRANSIENT_FAILURE) {
      SOON.execute(
          () -> {
            channel.resetConnectBackoff();
            keepBackoffShort(channel);
          });
    } else {
      channel.notifyWhenStateChanged(state, () -> keepBackoffShort(channel));
    }
  }
}
