package dev.headrace;

import java.time.Duration;
import java.util.Optional;

/** How an artifact is uploaded or downloaded. Immutable. */
public final class TransferOptions {
  /** As long as it takes; {@code application/octet-stream}. */
  public static final TransferOptions DEFAULT = new TransferOptions(Optional.empty(), "");

  private final Optional<Duration> timeout;
  private final String contentType;

  private TransferOptions(Optional<Duration> timeout, String contentType) {
    this.timeout = timeout;
    this.contentType = contentType;
  }

  /** Gives the transfer, with all its attempts, this long. */
  public TransferOptions withTimeout(Duration duration) {
    return new TransferOptions(Optional.of(duration), contentType);
  }

  /** Sets the media type of what is uploaded. */
  public TransferOptions withContentType(String mediaType) {
    return new TransferOptions(timeout, mediaType);
  }

  Optional<Duration> timeout() {
    return timeout;
  }

  String contentType() {
    return contentType;
  }
}
