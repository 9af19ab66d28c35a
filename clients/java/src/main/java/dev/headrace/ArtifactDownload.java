package dev.headrace;

import com.google.protobuf.ByteString;
import dev.headrace.v1.Artifact;
import dev.headrace.v1.DownloadArtifactRequest;
import dev.headrace.v1.DownloadArtifactResponse;
import dev.headrace.v1.ErrorReason;
import dev.headrace.v1.StatArtifactRequest;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.util.Iterator;

/**
 * Downloads one artifact, in as many attempts as it takes. What has arrived is kept in {@code
 * <file>.part} until all of it is verified.
 */
final class ArtifactDownload {
  private static final int DIGEST_BYTES = 32;
  private static final int CONTENT_CHANGES_MAX = 3;

  private final Stubs stubs;
  private final String runId;
  private final String path;
  private final Path file;
  private final Path draft;
  private final Retries retries;

  private Artifact artifact; // null until its digests are known
  private long verifiedBytes; // at the draft's beginning
  private int contentChanges;

  ArtifactDownload(Stubs stubs, String runId, String path, Path file, TransferOptions options) {
    this.stubs = stubs;
    this.runId = runId;
    this.path = path;
    this.file = file;
    draft = file.resolveSibling(file.getFileName() + ".part");
    retries = new Retries(options.timeout());
  }

  dev.headrace.Artifact run() throws IOException {
    try (FileChannel content =
        FileChannel.open(
            draft, StandardOpenOption.READ, StandardOpenOption.WRITE, StandardOpenOption.CREATE)) {
      while (!attempt(content)) {
        // The next one goes on behind the verified bytes.
      }
      content.force(true);
    } catch (HeadraceException failure) {
      if (Files.size(draft) == 0) {
        Files.delete(draft);
      }
      throw failure;
    }
    Files.move(draft, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
    return dev.headrace.Artifact.of(artifact, false);
  }

  /** Returns whether all of the artifact has arrived; otherwise another attempt is due. */
  private boolean attempt(FileChannel content) throws IOException {
    long before = verifiedBytes;
    try {
      if (artifact == null) {
        artifact = stat();
        verifiedBytes = verifiedBytesOf(content);
        before = verifiedBytes;
      }
      fetchRest(content);
      return true;
    } catch (HeadraceException failure) {
      if (verifiedBytes > before) {
        retries.progress();
      }
      if (failure.reason() == ErrorReason.ERROR_REASON_ARTIFACT_CHANGED
          && contentChanges++ < CONTENT_CHANGES_MAX) {
        artifact = null;
      } else {
        retries.waitAfter(failure);
      }
      return false;
    }
  }

  private Artifact stat() {
    StatArtifactRequest request =
        StatArtifactRequest.newBuilder().setRunId(runId).setPath(path).build();
    return Stubs.translated(
            () -> retries.within(stubs.artifacts(), stubs.callTimeout()).statArtifact(request))
        .getArtifact();
  }

  /** Returns how many bytes at the draft's beginning are whole parts of the artifact. */
  private long verifiedBytesOf(FileChannel content) throws IOException {
    long verified = 0;
    while (verified < artifact.getSize()) {
      long bytes = partBytesAt(verified);
      if (verified + bytes > content.size()
          || !isOfPart(Parts.digestOf(content, verified, bytes), verified)) {
        break;
      }
      verified += bytes;
    }
    return verified;
  }

  private void fetchRest(FileChannel content) throws IOException {
    content.truncate(verifiedBytes);
    content.position(verifiedBytes);
    if (verifiedBytes == artifact.getSize()) {
      return;
    }
    DownloadArtifactRequest request =
        DownloadArtifactRequest.newBuilder()
            .setRunId(runId)
            .setPath(path)
            .setOffset(verifiedBytes)
            .setDigest(artifact.getDigest())
            .build();
    Context.CancellableContext call = Context.current().withCancellation();
    Context before = call.attach();
    try {
      append(content, retries.within(stubs.artifacts()).downloadArtifact(request));
    } catch (StatusRuntimeException failure) {
      throw HeadraceException.of(failure);
    } finally {
      call.detachAndCancel(before, null);
    }
  }

  /** Appends the chunks to the draft, and counts each part as verified when it is. */
  private void append(FileChannel content, Iterator<DownloadArtifactResponse> messages)
      throws IOException {
    MessageDigest digest = Parts.sha256();
    long inPart = 0;
    while (messages.hasNext()) {
      ByteBuffer chunk = messages.next().getChunk().asReadOnlyByteBuffer();
      while (chunk.hasRemaining()) {
        long partBytes = partBytesAt(verifiedBytes);
        if (partBytes == 0) {
          throw new HeadraceException(Status.Code.DATA_LOSS, "the download has too many bytes");
        }
        int length = (int) Math.min(chunk.remaining(), partBytes - inPart);
        ByteBuffer piece = chunk.slice(chunk.position(), length);
        chunk.position(chunk.position() + length);
        digest.update(piece.duplicate());
        while (piece.hasRemaining()) {
          content.write(piece);
        }
        inPart += length;
        if (inPart == partBytes) {
          if (!isOfPart(digest.digest(), verifiedBytes)) {
            throw new HeadraceException(
                Status.Code.DATA_LOSS,
                ErrorReason.ERROR_REASON_DIGEST_MISMATCH,
                "the part at byte " + verifiedBytes + " was damaged on the way");
          }
          verifiedBytes += partBytes;
          inPart = 0;
        }
      }
    }
    if (verifiedBytes < artifact.getSize()) {
      throw new HeadraceException(Status.Code.UNAVAILABLE, "the download ended early");
    }
  }

  private long partBytesAt(long offset) {
    return Math.min(artifact.getPartSize(), artifact.getSize() - offset);
  }

  /** Returns whether a digest is that of the part that begins at {@code offset}. */
  private boolean isOfPart(byte[] digest, long offset) {
    int start = (int) (offset / artifact.getPartSize()) * DIGEST_BYTES;
    ByteString digests = artifact.getPartSha256S();
    return start + DIGEST_BYTES <= digests.size()
        && digests.substring(start, start + DIGEST_BYTES).equals(ByteString.copyFrom(digest));
  }
}
