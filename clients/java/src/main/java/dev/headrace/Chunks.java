package dev.headrace;

import com.google.protobuf.ByteString;
import com.google.protobuf.UnsafeByteOperations;
import java.io.EOFException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.function.Function;

/**
 * A slice of a file as messages of a stream: a header, then chunks, each read when it is asked for.
 */
final class Chunks<MessageT> implements Iterator<MessageT> {
  private static final int CHUNK_BYTES = 256 << 10;

  private final MessageT header;
  private final Function<ByteString, MessageT> messageOf;
  private final FileChannel file;
  private final long end;
  private boolean headerIsSent;
  private long position;

  Chunks(
      MessageT header,
      Function<ByteString, MessageT> messageOf,
      FileChannel file,
      long offset,
      long bytes) {
    this.header = header;
    this.messageOf = messageOf;
    this.file = file;
    this.position = offset;
    this.end = offset + bytes;
  }

  @Override
  public boolean hasNext() {
    return !headerIsSent || position < end;
  }

  /**
   * Returns the next message.
   *
   * @throws UncheckedIOException the file cannot be read, or has become shorter
   */
  @Override
  public MessageT next() {
    if (!hasNext()) {
      throw new NoSuchElementException();
    }
    if (!headerIsSent) {
      headerIsSent = true;
      return header;
    }
    byte[] chunk = new byte[(int) Math.min(CHUNK_BYTES, end - position)];
    ByteBuffer buffer = ByteBuffer.wrap(chunk);
    try {
      while (buffer.hasRemaining()) {
        int read = file.read(buffer, position);
        if (read < 0) {
          throw new EOFException("the file ends at byte " + position + ", before byte " + end);
        }
        position += read;
      }
    } catch (IOException failure) {
      throw new UncheckedIOException(failure);
    }
    return messageOf.apply(UnsafeByteOperations.unsafeWrap(chunk));
  }
}
