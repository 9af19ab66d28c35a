package dev.headrace;

import io.grpc.ChannelCredentials;
import java.time.Duration;
import java.util.Optional;

/** How {@link Client#connect(String, ConnectOptions)} connects. Immutable. */
public final class ConnectOptions {
  /** No token, the system's authorities, 30 seconds for a call. */
  public static final ConnectOptions DEFAULT =
      new ConnectOptions("", Optional.empty(), Duration.ofSeconds(30));

  private final String token;
  private final Optional<ChannelCredentials> tls;
  private final Duration callTimeout;

  private ConnectOptions(String token, Optional<ChannelCredentials> tls, Duration callTimeout) {
    this.token = token;
    this.tls = tls;
    this.callTimeout = callTimeout;
  }

  /** Sends a bearer token with every call. An empty one is none. */
  public ConnectOptions withToken(String token) {
    return new ConnectOptions(token, tls, callTimeout);
  }

  /**
   * Uses TLS credentials other than the system's authorities, for example {@code
   * TlsChannelCredentials.newBuilder().trustManager(file).build()}; the addresses must begin with
   * {@code https://}.
   */
  public ConnectOptions withTls(ChannelCredentials credentials) {
    return new ConnectOptions(token, Optional.of(credentials), callTimeout);
  }

  /** Gives calls that are answered by one message this long. */
  public ConnectOptions withCallTimeout(Duration timeout) {
    return new ConnectOptions(token, tls, timeout);
  }

  String token() {
    return token;
  }

  Optional<ChannelCredentials> tls() {
    return tls;
  }

  Duration callTimeout() {
    return callTimeout;
  }
}
