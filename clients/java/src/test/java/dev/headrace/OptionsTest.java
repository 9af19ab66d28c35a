package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.grpc.TlsChannelCredentials;
import java.time.Duration;
import org.junit.jupiter.api.Test;

class OptionsTest {
  private static final WriterOptions OPTIONS = WriterOptions.forRun("run");

  @Test
  void changingOptionsMakesOthers() {
    WriterOptions changed = OPTIONS.withRank(3).withBatchPointsMax(10).withAttempt(2);
    assertEquals(3, changed.open().getRank());
    assertEquals(2, changed.open().getAttempt());
    assertEquals(10, changed.batchPointsMax());
    assertEquals(0, OPTIONS.open().getRank());
    assertEquals(4_096, OPTIONS.batchPointsMax());
  }

  @Test
  void eachWriterAndRunHasIdsOfItsOwnUnlessTheyAreGiven() {
    assertNotEquals(OPTIONS.open().getWriterId(), OPTIONS.open().getWriterId());
    assertEquals("w", OPTIONS.withWriterId("w", "i").open().getWriterId());
    assertNotEquals(
        RunOptions.DEFAULT.request().getRunId(), RunOptions.DEFAULT.request().getRunId());
    assertEquals("r", RunOptions.DEFAULT.withRunId("r").request().getRunId());
  }

  @Test
  void impossibleValuesAreRefusedAtOnce() {
    assertThrows(IllegalArgumentException.class, () -> OPTIONS.withBatchPointsMax(0));
    assertThrows(IllegalArgumentException.class, () -> OPTIONS.withBatchPointsMax(8_193));
    assertThrows(IllegalArgumentException.class, () -> OPTIONS.withWindowPoints(0));
    assertThrows(IllegalArgumentException.class, () -> OPTIONS.withLinger(Duration.ofNanos(-1)));
    assertThrows(IllegalArgumentException.class, () -> ReadOptions.ALL.withMaxPoints(-1));
  }

  @Test
  void tlsNeedsAddressesThatSpeakIt() {
    ConnectOptions options = ConnectOptions.DEFAULT.withTls(TlsChannelCredentials.create());
    assertThrows(IllegalArgumentException.class, () -> Client.connect("127.0.0.1:1", options));
  }
}
