package dev.headrace;

import java.util.Optional;

/**
 * An artifact or a folder.
 *
 * @param path of either; a folder's has no {@code /} at its end
 * @param artifact empty for a folder
 */
public record ArtifactEntry(String path, Optional<Artifact> artifact) {
  static ArtifactEntry of(dev.headrace.v1.ArtifactEntry entry) {
    return entry.hasArtifact()
        ? new ArtifactEntry(
            entry.getArtifact().getPath(), Optional.of(Artifact.of(entry.getArtifact(), false)))
        : new ArtifactEntry(entry.getFolder(), Optional.empty());
  }
}
