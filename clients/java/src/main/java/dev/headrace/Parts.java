package dev.headrace;

import com.google.protobuf.ByteString;
import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/** How the contract cuts a file into parts, and their digests. */
final class Parts {
  private static final long SMALL_BYTES = 16L << 20;
  private static final long LARGE_BYTES = 64L << 20;
  private static final long SMALL_UP_TO_BYTES = 1L << 30;
  private static final long PARTS_MAX = 10_000;
  private static final int READ_BYTES = 256 << 10;

  private Parts() {}

  /** Returns the size of each part but the last, which follows from the file's size alone. */
  static long sizeFor(long fileBytes) {
    if (fileBytes <= SMALL_UP_TO_BYTES) {
      return SMALL_BYTES;
    }
    long size = LARGE_BYTES;
    while (size * PARTS_MAX < fileBytes) {
      size *= 2;
    }
    return size;
  }

  static MessageDigest sha256() {
    try {
      return MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException impossible) {
      throw new IllegalStateException("every Java has SHA-256", impossible);
    }
  }

  /** Returns the digests of all parts, one after another. */
  static ByteString digestsOf(FileChannel file, long fileBytes) throws IOException {
    ByteString.Output digests = ByteString.newOutput();
    long part = sizeFor(fileBytes);
    for (long offset = 0; offset < fileBytes; offset += part) {
      digests.write(digestOf(file, offset, Math.min(part, fileBytes - offset)));
    }
    return digests.toByteString();
  }

  /**
   * Returns the digest of a slice of a file.
   *
   * @throws EOFException the file ends before
   */
  static byte[] digestOf(FileChannel file, long offset, long bytes) throws IOException {
    MessageDigest digest = sha256();
    ByteBuffer buffer = ByteBuffer.allocate(READ_BYTES);
    long end = offset + bytes;
    for (long position = offset; position < end; ) {
      buffer.clear().limit((int) Math.min(READ_BYTES, end - position));
      int read = file.read(buffer, position);
      if (read < 0) {
        throw new EOFException("the file ends at byte " + position + ", before byte " + end);
      }
      digest.update(buffer.flip());
      position += read;
    }
    return digest.digest();
  }
}
