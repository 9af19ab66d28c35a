package dev.headrace;

import dev.headrace.v1.ReadMetricsResponse;
import dev.headrace.v1.SeriesColumns;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;

/**
 * The points of one series, ascending in step: element i of each array describes point i. The
 * arrays are the caller's, and two instances are equal only if they hold the same ones.
 *
 * @param key the series' key
 * @param rank its rank; -1 when aggregated over ranks
 * @param attempt the attempt of all its points; only with hidden points, otherwise 0
 * @param steps the steps
 * @param timesUnixUs when they were logged, in microseconds since 1970-01-01 UTC
 * @param values the values
 */
public record Columns(
    String key, int rank, int attempt, long[] steps, long[] timesUnixUs, double[] values) {

  /** Joins the messages of a read: consecutive ones of one series and attempt become one. */
  static List<Columns> joined(Iterator<ReadMetricsResponse> messages) {
    List<Columns> series = new ArrayList<>();
    List<SeriesColumns> pieces = new ArrayList<>();
    while (messages.hasNext()) {
      ReadMetricsResponse message = messages.next();
      if (!message.hasColumns()) {
        continue;
      }
      SeriesColumns piece = message.getColumns();
      if (!pieces.isEmpty() && !ofOneSeries(pieces.get(0), piece)) {
        series.add(of(pieces));
        pieces.clear();
      }
      pieces.add(piece);
    }
    if (!pieces.isEmpty()) {
      series.add(of(pieces));
    }
    return series;
  }

  private static boolean ofOneSeries(SeriesColumns one, SeriesColumns other) {
    return one.getKey().equals(other.getKey())
        && one.getRank() == other.getRank()
        && one.getAttempt() == other.getAttempt();
  }

  private static Columns of(List<SeriesColumns> pieces) {
    int points = pieces.stream().mapToInt(SeriesColumns::getStepCount).sum();
    SeriesColumns first = pieces.get(0);
    Columns columns =
        new Columns(
            first.getKey(),
            first.getRank(),
            first.getAttempt(),
            new long[points],
            new long[points],
            new double[points]);
    int point = 0;
    for (SeriesColumns piece : pieces) {
      for (int i = 0; i < piece.getStepCount(); i++, point++) {
        columns.steps[point] = piece.getStep(i);
        columns.timesUnixUs[point] = piece.getTimeUnixUs(i);
        columns.values[point] = piece.getValue(i);
      }
    }
    return columns;
  }
}
