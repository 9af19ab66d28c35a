package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.headrace.v1.MetricBatch;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

class BacklogTest {
  @Test
  void aResumeInTheMiddleOfABlockSendsTheRestOfIt() {
    Backlog backlog = logged(new Backlog(100), 10, 3);
    backlog.forget(4);
    assertEquals(18, backlog.points());
    MetricBatch batch = backlog.find(5).orElseThrow().batchFrom(5);
    assertEquals(5, batch.getFirstSequence());
    assertEquals(6, batch.getRecordCount());
    assertEquals(18, batch.getValueCount());
    assertEquals(4, batch.getStep(0));
    assertEquals(9, batch.getStep(17));
  }

  @Test
  void aRecordNeverStraddlesTwoBlocks() {
    Backlog backlog = logged(new Backlog(10), 4, 7);
    logged(backlog, 1, 8_000);
    assertEquals(7, backlog.find(2).orElseThrow().batchFrom(2).getValueCount());
    assertEquals(8_000, backlog.find(5).orElseThrow().batchFrom(5).getValueCount());
  }

  @Test
  void aLogCallOfTooManyPointsBecomesSeveralRecords() {
    Backlog backlog = logged(new Backlog(4_096), 1, 20_000);
    assertEquals(3, backlog.lastSequence());
    assertEquals(8_192, backlog.find(1).orElseThrow().batchFrom(1).getValueCount());
    assertEquals(20_000 - 2 * 8_192, backlog.find(3).orElseThrow().batchFrom(3).getValueCount());
  }

  @Test
  void aRecordWithoutPointsIsARecord() {
    Backlog backlog = logged(new Backlog(10), 2, 0);
    MetricBatch batch = backlog.find(1).orElseThrow().batchFrom(1);
    assertEquals(2, batch.getRecordCount());
    assertEquals(0, batch.getValueCount());
  }

  @Test
  void forgettingEverythingLeavesNothing() {
    Backlog backlog = logged(new Backlog(10), 9, 4);
    backlog.forget(20);
    assertEquals(0, backlog.points());
    assertTrue(backlog.find(9).isEmpty());
    assertEquals(9, backlog.lastSequence());
  }

  @Test
  void theSenderLooksWhenABlockBeginsAndWhenItIsFull() {
    Backlog backlog = new Backlog(3);
    assertTrue(add(backlog, 0, 1));
    assertFalse(add(backlog, 1, 1));
    assertTrue(add(backlog, 2, 1));
  }

  private static Backlog logged(Backlog backlog, int records, int points) {
    for (int step = 0; step < records; step++) {
      add(backlog, step, points);
    }
    return backlog;
  }

  private static boolean add(Backlog backlog, long step, int points) {
    int[] indexes = IntStream.range(0, points).toArray();
    return backlog.add(step, 0, indexes, new double[points], points, 0);
  }
}
