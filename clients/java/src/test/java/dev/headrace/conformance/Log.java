package dev.headrace.conformance;

import dev.headrace.HeadraceException;
import dev.headrace.Keys;
import dev.headrace.Writer;
import java.util.Map;

/** What became of the log calls of one step. */
final class Log {
  private final Writer writer;
  private int logged;
  private int refused;
  private HeadraceException first; // null while none has failed

  Log(Writer writer) {
    this.writer = writer;
  }

  void record(long step, Map<String, Double> values) {
    count(() -> writer.log(step, values));
  }

  /** Logs a record of all the keys at each step; key number k has the value step + k / 8. */
  void records(long firstStep, int count, String[] names) {
    Keys keys = writer.keys(names);
    double[] values = new double[names.length];
    for (long step = firstStep; step < firstStep + count; step++) {
      for (int k = 0; k < values.length; k++) {
        values[k] = step + k / 8.0;
      }
      long at = step;
      count(() -> writer.log(at, keys, values));
    }
  }

  void tell(Map<String, Object> outcome) {
    outcome.put("logged", logged);
    outcome.put("refused", refused);
    if (first != null) {
      outcome.put("error", Replay.reasonOf(first));
    }
  }

  private void count(Runnable call) {
    try {
      call.run();
      logged++;
    } catch (HeadraceException failure) {
      refused++;
      first = first == null ? failure : first;
    }
  }
}
