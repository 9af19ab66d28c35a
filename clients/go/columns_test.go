package headrace

import "testing"

func logged(backlog *backlog, records, points int) {
	for range records {
		block := backlog.begin(points)
		for index := range points {
			block.index = append(block.index, uint32(index))
			block.step = append(block.step, 0)
			block.time = append(block.time, 0)
			block.value = append(block.value, 0.5)
		}
		backlog.end(block)
	}
}

func TestAResumeInTheMiddleOfABlockSendsTheRestOfIt(t *testing.T) {
	backlog := &backlog{batchPointsMax: 100}
	logged(backlog, 10, 3)
	backlog.forget(4)
	if backlog.points != 18 {
		t.Fatalf("%d points are unacknowledged; expected 18", backlog.points)
	}
	batch := backlog.find(5).batch(5)
	if batch.FirstSequence != 5 || batch.RecordCount != 6 || len(batch.Value) != 18 {
		t.Fatalf("the batch is %v", batch)
	}
}

func TestARecordNeverStraddlesTwoBlocks(t *testing.T) {
	backlog := &backlog{batchPointsMax: 10}
	logged(backlog, 4, 7)
	logged(backlog, 1, 8_000)
	if points := len(backlog.find(2).batch(2).Value); points != 7 {
		t.Fatalf("the second batch has %d points", points)
	}
	if points := len(backlog.find(5).batch(5).Value); points != 8_000 {
		t.Fatalf("the large record's batch has %d points", points)
	}
}

func TestForgettingEverythingLeavesNothing(t *testing.T) {
	backlog := &backlog{batchPointsMax: 10}
	logged(backlog, 9, 4)
	backlog.forget(20)
	if backlog.points != 0 || len(backlog.blocks) != 0 || backlog.find(10) != nil {
		t.Fatalf("left: %d points, %d blocks", backlog.points, len(backlog.blocks))
	}
}
