package dev.headrace.conformance;

import dev.headrace.Client;
import dev.headrace.Counters;
import dev.headrace.Rejection;
import dev.headrace.Writer;
import dev.headrace.WriterOptions;
import dev.headrace.WriterStatus;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CopyOnWriteArrayList;

/** A writer and the rejections it was told of. */
final class ReportedWriter {
  private final List<Rejection> rejections = new CopyOnWriteArrayList<>();
  private final Writer writer;

  ReportedWriter(Client client, WriterOptions options) {
    writer = client.openWriter(options.withOnRejection(rejections::add));
  }

  Writer writer() {
    return writer;
  }

  Map<String, Object> report() {
    WriterStatus status = writer.status();
    Counters counters = status.counters();
    Map<String, Object> report = new TreeMap<>();
    report.put("committed_sequence", status.committedSequence());
    report.put(
        "counters",
        Map.of(
            "accepted_points", counters.acceptedPoints(),
            "late_points", counters.latePoints(),
            "repeated_points", counters.repeatedPoints(),
            "rejected_points", counters.rejectedPoints(),
            "lost_records", counters.lostRecords()));
    report.put("rejections", rejections.stream().map(ReportedWriter::written).toList());
    report.put("error", status.failure().map(Replay::reasonOf).orElse(null));
    report.put("finished", status.finished());
    report.put("streams", status.streams());
    report.put("reconnects", status.reconnects());
    report.put("refused_points", 0);
    return report;
  }

  private static Map<String, Object> written(Rejection rejection) {
    return Map.of(
        "reason", Replay.nameOf(rejection.reason()),
        "key", rejection.key(),
        "step", rejection.step(),
        "points", rejection.points());
  }
}
