package dev.headrace;

import dev.headrace.v1.ListSeriesRequest;

/** Chooses what {@link Client#listSeries} returns. Immutable. */
public final class ListSeriesOptions {
  /** All series. */
  public static final ListSeriesOptions ALL =
      new ListSeriesOptions(ListSeriesRequest.getDefaultInstance());

  private final ListSeriesRequest request;

  private ListSeriesOptions(ListSeriesRequest request) {
    this.request = request;
  }

  /** Lists only series whose key begins with this. */
  public ListSeriesOptions withKeyPrefix(String prefix) {
    return new ListSeriesOptions(request.toBuilder().setKeyPrefix(prefix).build());
  }

  /** Sets how many series one call to the gateway returns; 0: its default. */
  public ListSeriesOptions withPageSize(int pageSize) {
    return new ListSeriesOptions(request.toBuilder().setPageSize(pageSize).build());
  }

  ListSeriesRequest request(String runId) {
    return request.toBuilder().setRunId(runId).build();
  }
}
