package dev.headrace;

import java.time.Instant;
import java.util.HexFormat;

/**
 * A file of a run.
 *
 * @param runId the run
 * @param path its path in the run
 * @param size in bytes
 * @param digest the SHA-256 tree of the content, 64 lower-case hex digits
 * @param contentType the media type
 * @param createTime when it became visible
 * @param deduplicated whether, after an upload, the content was there already
 */
public record Artifact(
    String runId,
    String path,
    long size,
    String digest,
    String contentType,
    Instant createTime,
    boolean deduplicated) {
  static Artifact of(dev.headrace.v1.Artifact artifact, boolean deduplicated) {
    return new Artifact(
        artifact.getRunId(),
        artifact.getPath(),
        artifact.getSize(),
        HexFormat.of().formatHex(artifact.getDigest().toByteArray()),
        artifact.getContentType(),
        Times.instantOf(artifact.getCreateTime()),
        deduplicated);
  }
}
