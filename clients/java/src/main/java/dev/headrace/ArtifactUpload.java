package dev.headrace;

import com.google.protobuf.ByteString;
import dev.headrace.v1.BeginUploadRequest;
import dev.headrace.v1.BeginUploadResponse;
import dev.headrace.v1.CompleteUploadRequest;
import dev.headrace.v1.Upload;
import dev.headrace.v1.UploadArtifactHeader;
import dev.headrace.v1.UploadArtifactRequest;
import dev.headrace.v1.UploadArtifactResponse;
import dev.headrace.v1.UploadPartHeader;
import dev.headrace.v1.UploadPartRequest;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.Set;
import java.util.concurrent.CompletionService;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorCompletionService;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** Uploads one file, in as many attempts as it takes. */
final class ArtifactUpload {
  private static final long SINGLE_BYTES_MAX = 16 << 20; // larger files go in parts
  private static final int PARTS_IN_FLIGHT = 4;

  /** Completing may read the object back, about a second a gigabyte, of at most 5 TiB. */
  private static final Duration COMPLETE_TIMEOUT = Duration.ofHours(2);

  private final Stubs stubs;
  private final String runId;
  private final String path;
  private final Path file;
  private final TransferOptions options;
  private final Retries retries;

  ArtifactUpload(Stubs stubs, String runId, String path, Path file, TransferOptions options) {
    this.stubs = stubs;
    this.runId = runId;
    this.path = path;
    this.file = file;
    this.options = options;
    retries = new Retries(options.timeout());
  }

  Artifact run() throws IOException {
    while (true) {
      try (FileChannel content = FileChannel.open(file, StandardOpenOption.READ)) {
        return content.size() <= SINGLE_BYTES_MAX ? sendWhole(content) : sendInParts(content);
      } catch (HeadraceException failure) {
        retries.waitAfter(failure);
      } catch (UncheckedIOException failure) {
        throw failure.getCause();
      }
    }
  }

  private Artifact sendWhole(FileChannel content) throws IOException {
    long size = content.size();
    UploadArtifactHeader header =
        UploadArtifactHeader.newBuilder()
            .setRunId(runId)
            .setPath(path)
            .setSize(size)
            .setDigest(ByteString.copyFrom(Parts.digestOf(content, 0, size)))
            .setContentType(options.contentType())
            .build();
    UploadArtifactResponse response =
        ClientStreaming.call(
            retries.within(stubs.artifactsAsync())::uploadArtifact,
            new Chunks<>(
                UploadArtifactRequest.newBuilder().setHeader(header).build(),
                chunk -> UploadArtifactRequest.newBuilder().setChunk(chunk).build(),
                content,
                0,
                size));
    return Artifact.of(response.getArtifact(), response.getDeduplicated());
  }

  private Artifact sendInParts(FileChannel content) throws IOException {
    long size = content.size();
    BeginUploadRequest begin =
        BeginUploadRequest.newBuilder()
            .setRunId(runId)
            .setPath(path)
            .setSize(size)
            .setPartSha256S(Parts.digestsOf(content, size))
            .setContentType(options.contentType())
            .build();
    BeginUploadResponse begun =
        Stubs.translated(
            () -> retries.within(stubs.artifacts(), stubs.callTimeout()).beginUpload(begin));
    if (begun.hasArtifact()) {
      boolean deduplicated = retries.isFresh(); // after a failure it may be our own
      return Artifact.of(begun.getArtifact(), deduplicated);
    }
    sendParts(content, size, begun.getUpload());
    CompleteUploadRequest complete =
        CompleteUploadRequest.newBuilder()
            .setRunId(runId)
            .setUploadId(begun.getUpload().getUploadId())
            .build();
    return Artifact.of(
        Stubs.translated(
                () -> retries.within(stubs.artifacts(), COMPLETE_TIMEOUT).completeUpload(complete))
            .getArtifact(),
        false);
  }

  /** Sends the parts that are not stored, several at a time; the first failure ends it. */
  private void sendParts(FileChannel content, long size, Upload upload) throws IOException {
    Set<Integer> stored = Set.copyOf(upload.getStoredPartsList());
    ExecutorService senders = Executors.newFixedThreadPool(PARTS_IN_FLIGHT, ArtifactUpload::daemon);
    try {
      CompletionService<Integer> sent = new ExecutorCompletionService<>(senders);
      int missing = 0;
      for (int number = 1; number <= upload.getPartCount(); number++) {
        if (!stored.contains(number)) {
          int part = number;
          sent.submit(() -> sendPart(content, size, upload, part));
          missing++;
        }
      }
      for (; missing > 0; missing--) {
        sent.take().get();
        retries.progress();
      }
    } catch (InterruptedException interrupted) {
      throw HeadraceException.interrupted();
    } catch (ExecutionException failure) {
      throw unwrapped(failure);
    } finally {
      senders.shutdownNow();
    }
  }

  private int sendPart(FileChannel content, long size, Upload upload, int number) {
    long offset = (number - 1) * upload.getPartSize();
    UploadPartHeader header =
        UploadPartHeader.newBuilder()
            .setRunId(runId)
            .setUploadId(upload.getUploadId())
            .setPartNumber(number)
            .build();
    return ClientStreaming.call(
            retries.within(stubs.artifactsAsync())::uploadPart,
            new Chunks<>(
                UploadPartRequest.newBuilder().setHeader(header).build(),
                chunk -> UploadPartRequest.newBuilder().setChunk(chunk).build(),
                content,
                offset,
                Math.min(upload.getPartSize(), size - offset)))
        .getPartNumber();
  }

  private static RuntimeException unwrapped(ExecutionException failure) {
    if (failure.getCause() instanceof RuntimeException cause) {
      return cause;
    }
    throw new IllegalStateException(failure);
  }

  private static Thread daemon(Runnable task) {
    Thread thread = new Thread(task, "headrace-upload");
    thread.setDaemon(true);
    return thread;
  }
}
