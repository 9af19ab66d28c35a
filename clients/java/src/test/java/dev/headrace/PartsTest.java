package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.io.EOFException;
import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HexFormat;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class PartsTest {
  @ParameterizedTest
  @CsvSource({
    "0, 16777216",
    "17825792, 16777216",
    "1073741824, 16777216",
    "1073741825, 67108864",
    "5497558138880, 1073741824"
  })
  void thePartSizeFollowsFromTheSize(long fileBytes, long partBytes) {
    assertEquals(partBytes, Parts.sizeFor(fileBytes));
  }

  @Test
  void theDigestOfTheContractsExampleIsTheSame(@TempDir Path directory) throws IOException {
    long bytes = 20 << 20;
    Path file = Files.write(directory.resolve("zeros"), new byte[(int) bytes]);
    try (FileChannel content = FileChannel.open(file)) {
      byte[] parts = Parts.digestsOf(content, bytes).toByteArray();
      assertEquals(
          "1a0102b547ad4122ed18db99f8512aadb909dfbd7601fbf1eb7136a73a4c2a79",
          HexFormat.of().formatHex(Parts.sha256().digest(parts)));
      assertThrows(EOFException.class, () -> Parts.digestsOf(content, bytes + 1));
    }
  }
}
