package dev.headrace;

import com.google.protobuf.Timestamp;
import java.time.Instant;

/** Times of the contract as times of Java. */
final class Times {
  private Times() {}

  static Instant instantOf(Timestamp time) {
    return Instant.ofEpochSecond(time.getSeconds(), time.getNanos());
  }

  /** Returns now, in microseconds since 1970-01-01 UTC. */
  static long nowUnixUs() {
    Instant now = Instant.now();
    return now.getEpochSecond() * 1_000_000 + now.getNano() / 1_000;
  }
}
