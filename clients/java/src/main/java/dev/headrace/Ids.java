package dev.headrace;

import java.security.SecureRandom;
import java.util.HexFormat;

/** Makes ids of runs, writers and incarnations. */
public final class Ids {
  private static final SecureRandom RANDOM = new SecureRandom();

  private Ids() {}

  /** Returns a UUID of version 7 as 32 lower-case hex digits. */
  public static String newId() {
    byte[] id = new byte[16];
    RANDOM.nextBytes(id);
    long milliseconds = System.currentTimeMillis();
    for (int i = 0; i < 6; i++) {
      id[i] = (byte) (milliseconds >>> (40 - 8 * i));
    }
    id[6] = (byte) (id[6] & 0x0f | 0x70);
    id[8] = (byte) (id[8] & 0x3f | 0x80);
    return HexFormat.of().formatHex(id);
  }
}
