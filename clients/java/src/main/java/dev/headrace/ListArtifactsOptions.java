package dev.headrace;

import dev.headrace.v1.ListArtifactsRequest;

/** Chooses what {@link Client#listArtifacts} returns. Immutable. */
public final class ListArtifactsOptions {
  /** What stands at the run's top. */
  public static final ListArtifactsOptions TOP =
      new ListArtifactsOptions(ListArtifactsRequest.getDefaultInstance());

  private final ListArtifactsRequest request;

  private ListArtifactsOptions(ListArtifactsRequest request) {
    this.request = request;
  }

  /** Lists a folder instead of the top. */
  public ListArtifactsOptions withFolder(String folder) {
    return new ListArtifactsOptions(request.toBuilder().setFolder(folder).build());
  }

  /** Lists all artifacts below the folder, and no folders. */
  public ListArtifactsOptions withRecursive(boolean recursive) {
    return new ListArtifactsOptions(request.toBuilder().setRecursive(recursive).build());
  }

  /** Sets how many entries one call to the gateway returns; 0: its default. */
  public ListArtifactsOptions withPageSize(int pageSize) {
    return new ListArtifactsOptions(request.toBuilder().setPageSize(pageSize).build());
  }

  ListArtifactsRequest request(String runId) {
    return request.toBuilder().setRunId(runId).build();
  }
}
