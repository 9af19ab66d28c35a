package headrace

import (
	"slices"
	"sort"
	"time"

	pb "headrace.dev/headrace/v1"
)

const recordPointsMax = 8192 // of a batch, and a record fits a batch

// block holds consecutive records as columns: what becomes one batch, or, after
// a resume in its middle, the rest of one.
type block struct {
	firstSequence uint64
	started       time.Time // when its first record was logged
	sealed        bool      // takes no more records
	ends          []int32   // ends[i]: how many points the records up to i have
	acknowledged  int       // points
	index         []uint32
	step          []int64
	time          []int64
	value         []float64
}

func (b *block) lastSequence() uint64 { return b.firstSequence + uint64(len(b.ends)) - 1 }

// pointsBefore returns how many points stand before the record.
func (b *block) pointsBefore(sequence uint64) int {
	if sequence <= b.firstSequence {
		return 0
	}
	return int(b.ends[sequence-b.firstSequence-1])
}

// batch returns the records from sequence on, without copying a column.
func (b *block) batch(sequence uint64) *pb.MetricBatch {
	start := b.pointsBefore(sequence)
	return &pb.MetricBatch{
		FirstSequence: sequence,
		RecordCount:   uint32(b.lastSequence() - sequence + 1),
		SeriesIndex:   b.index[start:],
		Step:          b.step[start:],
		TimeUnixUs:    b.time[start:],
		Value:         b.value[start:],
	}
}

// backlog holds the records that are logged and not acknowledged. Not safe for
// concurrent use: the writer's mutex guards it.
type backlog struct {
	batchPointsMax int
	blocks         []*block
	lastSequence   uint64 // of the last record logged
	points         int    // logged and not acknowledged
}

// begin returns the block for a record of so many points.
func (l *backlog) begin(points int) *block {
	if len(l.blocks) > 0 {
		last := l.blocks[len(l.blocks)-1]
		if !last.sealed && len(last.value)+points <= l.batchPointsMax {
			return last
		}
		last.sealed = true
	}
	capacity := max(points, l.batchPointsMax)
	if points*4 < capacity { // a writer that logs little needs no large blocks
		capacity = points * 4
	}
	fresh := &block{
		firstSequence: l.lastSequence + 1,
		started:       time.Now(),
		index:         make([]uint32, 0, capacity),
		step:          make([]int64, 0, capacity),
		time:          make([]int64, 0, capacity),
		value:         make([]float64, 0, capacity),
	}
	l.blocks = append(l.blocks, fresh)
	return fresh
}

// end closes the record that the last points of the block are.
func (l *backlog) end(b *block) {
	before := b.pointsBefore(b.firstSequence + uint64(len(b.ends)))
	l.points += len(b.value) - before
	b.ends = append(b.ends, int32(len(b.value)))
	l.lastSequence++
	b.sealed = b.sealed || len(b.value) >= l.batchPointsMax
}

// forget drops the records up to committed.
func (l *backlog) forget(committed uint64) {
	done := 0
	for _, b := range l.blocks {
		if committed < b.firstSequence {
			break
		}
		acknowledged := b.pointsBefore(min(committed, b.lastSequence()) + 1)
		l.points -= acknowledged - b.acknowledged
		b.acknowledged = acknowledged
		if committed < b.lastSequence() {
			break
		}
		done++
	}
	l.blocks = slices.Delete(l.blocks, 0, done)
}

// find returns the block with the record; nil when there is none yet.
func (l *backlog) find(sequence uint64) *block {
	i := sort.Search(len(l.blocks), func(i int) bool {
		return l.blocks[i].lastSequence() >= sequence
	})
	if i == len(l.blocks) {
		return nil
	}
	return l.blocks[i]
}
