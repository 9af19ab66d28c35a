package dev.headrace;

import dev.headrace.v1.CreateRunRequest;
import dev.headrace.v1.CreateRunResponse;
import dev.headrace.v1.FinishRunRequest;
import dev.headrace.v1.GetRunRequest;
import dev.headrace.v1.HeartbeatRunRequest;
import dev.headrace.v1.ListArtifactsRequest;
import dev.headrace.v1.ListArtifactsResponse;
import dev.headrace.v1.ListSeriesRequest;
import dev.headrace.v1.ListSeriesResponse;
import dev.headrace.v1.ReadMetricsRequest;
import dev.headrace.v1.RunState;
import io.grpc.ManagedChannel;
import io.grpc.stub.AbstractStub;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;

/**
 * Talks to one gateway, or to several that share a database.
 *
 * <p>Every method throws {@link HeadraceException} when the gateway refuses or cannot be reached.
 * Calls are not repeated, except those that move artifacts.
 */
public final class Client implements AutoCloseable {
  /** Where a gateway listens unless told otherwise. */
  public static final String DEFAULT_ADDRESS = "127.0.0.1:7420";

  private static final long CLOSE_TIMEOUT_S = 5;

  private final ManagedChannel channel;
  private final Stubs stubs;
  private final Set<Writer> writers = ConcurrentHashMap.newKeySet();

  private Client(ManagedChannel channel, Stubs stubs) {
    this.channel = channel;
    this.stubs = stubs;
  }

  /** Makes a client with the default options. */
  public static Client connect(String addresses) {
    return connect(addresses, ConnectOptions.DEFAULT);
  }

  /**
   * Makes a client; does not wait for the gateway.
   *
   * @param addresses {@code host:port} (plain text) or {@code https://host:port} (TLS), or several
   *     of one kind separated by commas: calls and streams then take turns
   * @throws IllegalArgumentException an address is something else, or the options do not fit it
   */
  public static Client connect(String addresses, ConnectOptions options) {
    ManagedChannel channel = Channels.to(Addresses.parse(addresses), options);
    return new Client(channel, Stubs.of(channel, options.callTimeout()));
  }

  /**
   * Closes the writers and ends the connection. What the writers have not sent is lost: finish them
   * before.
   */
  @Override
  public void close() {
    writers.forEach(Writer::close);
    channel.shutdownNow();
    try {
      channel.awaitTermination(CLOSE_TIMEOUT_S, TimeUnit.SECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  /**
   * Creates a run, or returns the one that has this id. Fails with {@code RUN_EXISTS} when that one
   * has other policies. Its experiment stays what it is.
   */
  public Run createRun(RunOptions options) {
    CreateRunRequest request = options.request();
    CreateRunResponse response = Stubs.translated(() -> limited(stubs.runs()).createRun(request));
    return Run.of(response.getRun(), response.getCreated());
  }

  /** Reads a run. Fails with {@code RUN_NOT_FOUND}. */
  public Run getRun(String runId) {
    GetRunRequest request = GetRunRequest.newBuilder().setRunId(runId).build();
    return Run.of(Stubs.translated(() -> limited(stubs.runs()).getRun(request)).getRun(), false);
  }

  /** Ends a run of one attempt well. */
  public boolean finishRun(String runId) {
    return finishRun(runId, 1, RunState.RUN_STATE_FINISHED);
  }

  /**
   * Ends a run.
   *
   * @param attempt the attempt that ended, from 1
   * @param state {@code FINISHED}, {@code FAILED} or {@code KILLED}
   * @return false when a newer attempt exists: nothing was changed
   */
  public boolean finishRun(String runId, int attempt, RunState state) {
    FinishRunRequest request =
        FinishRunRequest.newBuilder().setRunId(runId).setAttempt(attempt).setState(state).build();
    return Stubs.translated(() -> limited(stubs.runs()).finishRun(request)).getApplied();
  }

  /** Says that the run's job is alive. Not needed while a writer is open. */
  public void heartbeatRun(String runId) {
    HeartbeatRunRequest request = HeartbeatRunRequest.newBuilder().setRunId(runId).build();
    Stubs.translated(() -> limited(stubs.runs()).heartbeatRun(request));
  }

  /**
   * Opens a writer. Does not wait for the gateway: failures are thrown by the writer's {@code log},
   * {@code flush} and {@code finish}.
   */
  public Writer openWriter(WriterOptions options) {
    return Writer.open(stubs.metricsAsync(), options, writers);
  }

  /**
   * Reads points of a run from one consistent snapshot, ordered by key and rank. Takes as long as
   * it takes.
   */
  public List<Columns> readMetrics(String runId, ReadOptions options) {
    ReadMetricsRequest request = options.request(runId);
    return Stubs.translated(() -> Columns.joined(stubs.metrics().readMetrics(request)));
  }

  /** Lists the series of a run, ordered by key and rank; all pages. */
  public List<Series> listSeries(String runId, ListSeriesOptions options) {
    List<Series> series = new ArrayList<>();
    ListSeriesRequest request = options.request(runId);
    while (true) {
      ListSeriesRequest asked = request;
      ListSeriesResponse page = Stubs.translated(() -> limited(stubs.metrics()).listSeries(asked));
      page.getSeriesList().forEach(one -> series.add(Series.of(one)));
      if (page.getNextPageToken().isEmpty()) {
        return series;
      }
      request = request.toBuilder().setPageToken(page.getNextPageToken()).build();
    }
  }

  /** Stores a file, with the default options. */
  public Artifact uploadArtifact(String runId, String path, Path file) throws IOException {
    return uploadArtifact(runId, path, file, TransferOptions.DEFAULT);
  }

  /**
   * Stores a file under a path of the run, replacing what is there when all of it has arrived.
   * Resumes after any disconnect; calling it again after a crash resumes too.
   *
   * @throws IOException the file cannot be read
   */
  public Artifact uploadArtifact(String runId, String path, Path file, TransferOptions options)
      throws IOException {
    return new ArtifactUpload(stubs, runId, path, file, options).run();
  }

  /** Reads an artifact into a file, with the default options. */
  public Artifact downloadArtifact(String runId, String path, Path file) throws IOException {
    return downloadArtifact(runId, path, file, TransferOptions.DEFAULT);
  }

  /**
   * Reads an artifact into a file, verified part by part. What has arrived is kept in {@code
   * <file>.part}, so that it resumes after any disconnect, and after a crash when it is called
   * again.
   *
   * @throws IOException the file cannot be written
   */
  public Artifact downloadArtifact(String runId, String path, Path file, TransferOptions options)
      throws IOException {
    return new ArtifactDownload(stubs, runId, path, file, options).run();
  }

  /** Lists artifacts and folders, ordered by the bytes of their paths; all pages. */
  public List<ArtifactEntry> listArtifacts(String runId, ListArtifactsOptions options) {
    List<ArtifactEntry> entries = new ArrayList<>();
    ListArtifactsRequest request = options.request(runId);
    while (true) {
      ListArtifactsRequest asked = request;
      ListArtifactsResponse page =
          Stubs.translated(() -> limited(stubs.artifacts()).listArtifacts(asked));
      page.getEntriesList().forEach(entry -> entries.add(ArtifactEntry.of(entry)));
      if (page.getNextPageToken().isEmpty()) {
        return entries;
      }
      request = request.toBuilder().setPageToken(page.getNextPageToken()).build();
    }
  }

  /** Gives the next call its deadline. */
  private <S extends AbstractStub<S>> S limited(S stub) {
    return stub.withDeadlineAfter(stubs.callTimeout());
  }
}
