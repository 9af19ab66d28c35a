package headrace

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "headrace.dev/headrace/v1"
)

const (
	heartbeatDefault = 15 * time.Second
	// 500 keys of 251 characters of 4 bytes stay below the message limit of 1 MiB.
	keysPerMessage = 500
)

type writeStream = grpc.BidiStreamingClient[pb.WriteMetricsRequest, pb.WriteMetricsResponse]

// ending is how a stream ended.
type ending struct {
	moved     bool // the gateway asked to move
	moveAfter time.Duration
	err       error // nil: the gateway ended it in good order
}

// converse holds one conversation with the gateway, from `open` to its end.
func (w *Writer) converse(ctx context.Context) ending {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.client.metrics.WriteMetrics(w.client.authorized(ctx))
	if err != nil {
		return ending{err: err}
	}
	_ = stream.Send(w.open) // if it fails, Recv tells why
	first, err := stream.Recv()
	if err != nil {
		return ending{err: err}
	}
	opened := first.GetOpened()
	if opened == nil {
		return ending{err: &Error{Code: codes.Unimplemented, Message: "expected `opened`"}}
	}
	heartbeat := heartbeatDefault
	if interval := opened.GetLimits().GetHeartbeatIntervalMs(); interval > 0 {
		heartbeat = time.Duration(interval) * time.Millisecond
	}
	next, resync := w.opened(opened)
	if resync {
		_ = stream.Send(&pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Resync{
			Resync: &pb.Resync{FirstSequence: next},
		}})
	}
	// Responses are read while writes are blocked, or neither side could proceed.
	var moveAfterMs atomic.Int64
	moveAfterMs.Store(-1)
	over := make(chan error, 1)
	go func() {
		for {
			response, err := stream.Recv()
			if err != nil {
				over <- err
				return
			}
			if move := response.GetReconnect(); move != nil {
				moveAfterMs.Store(int64(move.GetRetryAfterMs()))
				w.moves()
			}
			w.receive(response)
		}
	}()
	moving := func() bool { return moveAfterMs.Load() >= 0 }
	err = w.send(stream, next, heartbeat*2/3, moving, over)
	if err == nil {
		_ = stream.CloseSend()
		err = <-over
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	result := ending{err: err, moved: moving()}
	if result.moved {
		result.moveAfter = time.Duration(rand.Float64() * float64(moveAfterMs.Load()) * 1e6)
	}
	return result
}

// send sends keys and batches from record next on. It returns nil when there is
// nothing more to send on this stream, and what over delivers when it broke.
func (w *Writer) send(
	stream writeStream,
	next uint64,
	heartbeat time.Duration,
	moving func() bool,
	over <-chan error,
) error {
	timer := time.NewTimer(heartbeat)
	defer timer.Stop()
	keysSent := 0
	quietSince := time.Now()
	for {
		if moving() {
			return nil
		}
		batch, names, finish, wait := w.next(next, keysSent)
		w.tellRefused()
		for len(names) > 0 {
			count := min(len(names), keysPerMessage)
			definitions := make([]*pb.KeyDefinition, count)
			for i, name := range names[:count] {
				definitions[i] = &pb.KeyDefinition{Index: uint32(keysSent + i), Key: name}
			}
			if err := stream.Send(&pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Keys{
				Keys: &pb.DefineKeys{Keys: definitions},
			}}); err != nil {
				return <-over
			}
			keysSent += count
			names = names[count:]
		}
		switch {
		case finish != nil:
			if err := stream.Send(&pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Finish{
				Finish: finish,
			}}); err != nil {
				return <-over
			}
			return nil
		case batch != nil:
			if err := stream.Send(&pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Batch{
				Batch: batch,
			}}); err != nil {
				return <-over
			}
			next = batch.GetFirstSequence() + uint64(batch.GetRecordCount())
			quietSince = time.Now()
			continue
		}
		untilHeartbeat := heartbeat - time.Since(quietSince)
		if untilHeartbeat <= 0 {
			if err := stream.Send(&pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Heartbeat{
				Heartbeat: &pb.Heartbeat{},
			}}); err != nil {
				return <-over
			}
			quietSince, untilHeartbeat = time.Now(), heartbeat
		}
		timer.Reset(min(wait, untilHeartbeat))
		select {
		case <-w.wake:
		case <-timer.C:
		case err := <-over:
			return err
		}
	}
}

// next decides what to send: a batch that begins with the record next and the
// names of new keys, or `finish`, or nothing for a while.
func (w *Writer) next(next uint64, keysSent int) (
	batch *pb.MetricBatch, names []string, finish *pb.FinishWriter, wait time.Duration,
) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	next = max(next, w.status.CommittedSequence+1)
	found := w.backlog.find(next)
	if found == nil {
		if w.finishing {
			// A successor may end with fewer records than are committed already.
			last := max(w.backlog.lastSequence, w.status.CommittedSequence)
			return nil, nil, &pb.FinishWriter{LastSequence: last}, 0
		}
		return nil, nil, nil, time.Hour
	}
	if !found.sealed && !w.finishing && w.flushTo < found.firstSequence {
		if left := w.options.Linger - time.Since(found.started); left > 0 {
			return nil, nil, nil, left
		}
	}
	found.sealed = true
	return found.batch(next), w.names[keysSent:], nil, 0
}

// opened takes in the gateway's answer to `open` and returns the record to go on
// with; with resync, when the gateway has lost records that are forgotten here.
func (w *Writer) opened(opened *pb.Opened) (next uint64, resync bool) {
	w.mutex.Lock()
	w.status.Streams++
	known := w.status.CommittedSequence
	w.mutex.Unlock()
	w.progress(opened.GetCommittedSequence(), opened.GetCounters(), opened.GetRejections())
	if opened.GetCommittedSequence() < known {
		return known + 1, true
	}
	return opened.GetCommittedSequence() + 1, false
}

func (w *Writer) receive(response *pb.WriteMetricsResponse) {
	if ack := response.GetAck(); ack != nil {
		w.progress(ack.GetCommittedSequence(), ack.GetCounters(), ack.GetRejections())
	}
	if finished := response.GetFinished(); finished != nil {
		w.progress(finished.GetCommittedSequence(), finished.GetCounters(), nil)
		w.mutex.Lock()
		w.status.Finished = true
		w.announce()
		w.mutex.Unlock()
	}
}

// progress takes in a watermark and what was told with it.
func (w *Writer) progress(committed uint64, counters *pb.WriterCounters, samples []*pb.Rejection) {
	w.mutex.Lock()
	known := w.status.CommittedSequence
	w.mutex.Unlock()
	for _, sample := range samples {
		// What stands at or below the known watermark came with an earlier ack.
		if sample.GetSequence() > known {
			w.tell(rejectionOf(sample))
		}
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.status.CommittedSequence = max(known, committed)
	w.status.Counters = Counters{
		AcceptedPoints: counters.GetAcceptedPoints(),
		LatePoints:     counters.GetLatePoints(),
		RepeatedPoints: counters.GetRepeatedPoints(),
		RejectedPoints: counters.GetRejectedPoints(),
		LostRecords:    counters.GetLostRecords(),
	}
	w.backlog.forget(w.status.CommittedSequence)
	w.announce()
}

func (w *Writer) moves() {
	w.mutex.Lock()
	w.status.Reconnects++
	w.mutex.Unlock()
	w.wakeSender()
}

func rejectionOf(sample *pb.Rejection) Rejection {
	return Rejection{
		Reason:   Reason(strings.TrimPrefix(sample.GetReason().String(), "ERROR_REASON_")),
		Key:      sample.GetKey(),
		Step:     sample.GetStep(),
		Sequence: sample.GetSequence(),
		Field:    sample.GetField(),
		Detail:   sample.GetDetail(),
		Points:   sample.GetPoints(),
	}
}
