package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.headrace.v1.CaughtUp;
import dev.headrace.v1.ReadMetricsResponse;
import dev.headrace.v1.SeriesColumns;
import java.util.List;
import org.junit.jupiter.api.Test;

class ColumnsTest {
  @Test
  void consecutiveMessagesOfASeriesBecomeOne() {
    List<Columns> series =
        Columns.joined(
            List.of(
                    message("loss", 0, 1, 2),
                    message("loss", 0, 3),
                    message("loss", 1, 1),
                    ReadMetricsResponse.newBuilder()
                        .setCaughtUp(CaughtUp.getDefaultInstance())
                        .build())
                .iterator());
    assertEquals(2, series.size());
    assertArrayEquals(new long[] {1, 2, 3}, series.get(0).steps());
    assertArrayEquals(new double[] {0.5, 1, 1.5}, series.get(0).values());
    assertEquals(1, series.get(1).rank());
  }

  private static ReadMetricsResponse message(String key, int rank, long... steps) {
    SeriesColumns.Builder columns = SeriesColumns.newBuilder().setKey(key).setRank(rank);
    for (long step : steps) {
      columns.addStep(step).addTimeUnixUs(0).addValue(step / 2.0);
    }
    return ReadMetricsResponse.newBuilder().setColumns(columns).build();
  }
}
