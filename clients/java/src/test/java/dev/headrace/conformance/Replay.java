package dev.headrace.conformance;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import dev.headrace.Artifact;
import dev.headrace.ArtifactEntry;
import dev.headrace.Client;
import dev.headrace.Columns;
import dev.headrace.HeadraceException;
import dev.headrace.ListArtifactsOptions;
import dev.headrace.ListSeriesOptions;
import dev.headrace.ReadOptions;
import dev.headrace.Run;
import dev.headrace.RunOptions;
import dev.headrace.Series;
import dev.headrace.WhenFull;
import dev.headrace.WindowFullException;
import dev.headrace.Writer;
import dev.headrace.WriterClosedException;
import dev.headrace.WriterOptions;
import dev.headrace.v1.ErrorReason;
import dev.headrace.v1.LatePolicy;
import dev.headrace.v1.RankAggregation;
import dev.headrace.v1.RunState;
import dev.headrace.v1.StepPolicy;
import java.io.BufferedReader;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** Executes the steps of a scenario in order and tells what became of them. */
final class Replay {
  private static final int DEADLINE_MS = 30_000;
  private static final Gson JSON = new GsonBuilder().serializeNulls().create();

  private final Client client;
  private final Path directory;
  private final BufferedReader input;
  private final Map<String, ReportedWriter> writers = new HashMap<>();

  Replay(Client client, Path directory, BufferedReader input) {
    this.client = client;
    this.directory = directory;
    this.input = input;
  }

  void run(JsonArray steps) throws IOException {
    List<Map<String, Object>> outcomes = new ArrayList<>();
    for (JsonElement step : steps) {
      Map<String, Object> outcome = new TreeMap<>();
      long startedNanos = System.nanoTime();
      try {
        execute(outcomes.size(), new Step(step.getAsJsonObject()), outcome);
      } catch (HeadraceException failure) {
        outcome.put("error", reasonOf(failure));
      }
      outcome.put("elapsed_ms", (System.nanoTime() - startedNanos) / 1e6);
      outcomes.add(outcome);
    }
    Map<String, Object> reports = new TreeMap<>();
    writers.forEach((name, writer) -> reports.put(name, writer.report()));
    print(Map.of("result", Map.of("steps", outcomes, "writers", reports)));
  }

  private void execute(int index, Step step, Map<String, Object> outcome) throws IOException {
    switch (step.text("do")) {
      case "fault" -> {
        print(Map.of("fault", index));
        input.readLine();
      }
      case "create_run" -> outcome.put("created", client.createRun(runOptions(step)).created());
      case "get_run" -> getRun(step, outcome);
      case "finish_run" -> outcome.put("applied", finishRun(step));
      case "heartbeat_run" -> client.heartbeatRun(step.text("run_id"));
      case "open_writer" ->
          writers.put(step.text("writer"), new ReportedWriter(client, writerOptions(step)));
      case "log" -> log(step, outcome);
      case "flush" -> writer(step).flush(deadline(step));
      case "finish" -> writer(step).finish(deadline(step));
      case "close" -> writer(step).close();
      case "read" -> outcome.put("series", read(step));
      case "list_series" -> outcome.put("series", listSeries(step));
      case "upload" ->
          put(client.uploadArtifact(step.text("run_id"), step.text("path"), file(step)), outcome);
      case "download" ->
          put(client.downloadArtifact(step.text("run_id"), step.text("path"), file(step)), outcome);
      case "list_artifacts" -> outcome.put("entries", listArtifacts(step));
      default -> throw new IllegalArgumentException("there is no step " + step.text("do"));
    }
  }

  private RunOptions runOptions(Step step) {
    return RunOptions.DEFAULT
        .withRunId(step.text("run_id"))
        .withExperiment(step.text("experiment"))
        .withName(step.text("name"))
        .withStepPolicy(stepPolicy(step))
        .withLatePolicy(step.constant("late_policy", LatePolicy.class, "LATE_POLICY_"));
  }

  private void getRun(Step step, Map<String, Object> outcome) {
    Run run = client.getRun(step.text("run_id"));
    outcome.put("state", run.state().name().substring("RUN_STATE_".length()));
    outcome.put(
        "attempts",
        run.attempts().stream()
            .map(
                attempt -> {
                  Map<String, Object> written = new LinkedHashMap<>();
                  written.put("attempt", attempt.attempt());
                  written.put(
                      "resume_step",
                      attempt.resumeStep().isPresent() ? attempt.resumeStep().getAsLong() : null);
                  return written;
                })
            .toList());
  }

  private boolean finishRun(Step step) {
    RunState state = step.constant("state", RunState.class, "RUN_STATE_");
    return client.finishRun(step.text("run_id"), step.number("attempt"), state);
  }

  private WriterOptions writerOptions(Step step) {
    WriterOptions options =
        WriterOptions.forRun(step.text("run_id"))
            .withWriterId(step.text("writer_id"), step.text("incarnation"))
            .withRank(step.number("rank"))
            .withAttempt(step.number("attempt"))
            .withResumeExemptKeys(step.texts("resume_exempt_keys"))
            .withWhenFull("error".equals(step.text("when_full")) ? WhenFull.ERROR : WhenFull.BLOCK);
    options = step.apply(options, "resume_step", step::step, WriterOptions::withResumeStep);
    options =
        step.apply(options, "batch_points_max", step::number, WriterOptions::withBatchPointsMax);
    options = step.apply(options, "window_points", step::number, WriterOptions::withWindowPoints);
    return step.apply(
        options,
        "linger_ms",
        name -> Duration.ofMillis(step.number(name)),
        WriterOptions::withLinger);
  }

  private void log(Step step, Map<String, Object> outcome) {
    Log log = new Log(writer(step));
    for (JsonElement point : step.list("points")) {
      Map<String, Double> values = new LinkedHashMap<>();
      point
          .getAsJsonArray()
          .get(1)
          .getAsJsonObject()
          .entrySet()
          .forEach(one -> values.put(one.getKey(), Step.valueOf(one.getValue())));
      log.record(point.getAsJsonArray().get(0).getAsLong(), values);
    }
    if (!step.has("points")) {
      log.records(step.step("first_step"), step.number("count"), step.keys());
    }
    log.tell(outcome);
  }

  private List<Map<String, Object>> read(Step step) {
    ReadOptions options =
        ReadOptions.ALL
            .withKeys(step.keys())
            .withRanks(
                step.list("ranks").stream().map(JsonElement::getAsInt).toArray(Integer[]::new))
            .withRankAggregation(
                step.constant("rank_aggregation", RankAggregation.class, "RANK_AGGREGATION_"))
            .withStepPolicy(stepPolicy(step))
            .withMaxPoints(step.number("max_points"))
            .withIncludeHidden(step.flag("include_hidden"));
    options = step.apply(options, "first_step", step::step, ReadOptions::withFirstStep);
    options = step.apply(options, "last_step", step::step, ReadOptions::withLastStep);
    return client.readMetrics(step.text("run_id"), options).stream().map(Replay::written).toList();
  }

  private List<Map<String, Object>> listSeries(Step step) {
    ListSeriesOptions options =
        ListSeriesOptions.ALL
            .withKeyPrefix(step.text("key_prefix"))
            .withPageSize(step.number("page_size"));
    return client.listSeries(step.text("run_id"), options).stream().map(Replay::written).toList();
  }

  private List<String> listArtifacts(Step step) {
    ListArtifactsOptions options =
        ListArtifactsOptions.TOP
            .withFolder(step.text("folder"))
            .withRecursive(step.flag("recursive"))
            .withPageSize(step.number("page_size"));
    return client.listArtifacts(step.text("run_id"), options).stream()
        .map(Replay::written)
        .toList();
  }

  private Writer writer(Step step) {
    return writers.get(step.text("writer")).writer();
  }

  private Path file(Step step) {
    return directory.resolve(step.text("file"));
  }

  private static Duration deadline(Step step) {
    return Duration.ofMillis(step.has("deadline_ms") ? step.number("deadline_ms") : DEADLINE_MS);
  }

  private static StepPolicy stepPolicy(Step step) {
    return step.constant("step_policy", StepPolicy.class, "STEP_POLICY_");
  }

  private static Map<String, Object> written(Columns columns) {
    return Map.of(
        "key", columns.key(),
        "rank", columns.rank(),
        "steps", columns.steps(),
        "values", Step.written(columns.values()));
  }

  private static Map<String, Object> written(Series series) {
    return Map.of(
        "key", series.key(),
        "rank", series.rank(),
        "point_count", series.pointCount(),
        "last_step", series.lastStep(),
        "last_value", Step.written(series.lastValue()),
        "min_value", Step.written(series.minValue()),
        "max_value", Step.written(series.maxValue()));
  }

  private static String written(ArtifactEntry entry) {
    return entry.artifact().isPresent() ? entry.path() : entry.path() + "/";
  }

  private static void put(Artifact artifact, Map<String, Object> outcome) {
    outcome.put("size", artifact.size());
    outcome.put("digest", artifact.digest());
    outcome.put("deduplicated", artifact.deduplicated());
  }

  static String reasonOf(HeadraceException failure) {
    if (failure instanceof WindowFullException) {
      return "WINDOW_FULL";
    }
    if (failure instanceof WriterClosedException) {
      return "WRITER_CLOSED";
    }
    return failure.reason() == ErrorReason.ERROR_REASON_UNSPECIFIED
        ? failure.code().name()
        : nameOf(failure.reason());
  }

  static String nameOf(ErrorReason reason) {
    return reason.name().substring("ERROR_REASON_".length());
  }

  private static void print(Map<String, Object> line) {
    System.out.println(JSON.toJson(line));
  }
}
