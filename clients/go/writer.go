package headrace

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	pb "headrace.dev/headrace/v1"
)

const (
	keyCharactersMax = 250
	keysMax          = 100_000
	// A key that is too long is cut to what is still too long, but fits a
	// message: the gateway judges it.
	keyCharactersSent = keyCharactersMax + 1
)

// WhenFull says what Log does when the window is full.
type WhenFull int

const (
	// Block waits until the gateway has acknowledged enough.
	Block WhenFull = iota
	// Fail returns ErrWindowFull; the record is not logged.
	Fail
)

// WriterOptions describe a writer. Only RunID is required.
type WriterOptions struct {
	RunID string
	// WriterID and Incarnation name the writer, 32 lower-case hex digits each.
	// A process that is to continue another one's writer gives the same two,
	// and logs the same records again from the first on: those that are
	// committed already are not sent. Default: new ones.
	WriterID    string
	Incarnation string
	Rank        int32 // of the process in its job, from 0
	Attempt     int32 // which start of the job this is, from 1; 0 means 1
	// ResumeStep is the first step this attempt computes anew; nil hides nothing.
	ResumeStep       *int64
	ResumeExemptKeys []string // keys that no resume step hides

	BatchPointsMax int           // points in a batch; default 4,096, at most 8,192
	Linger         time.Duration // how long a record waits for company; default 50 ms, negative: none
	WindowPoints   int           // points logged and not acknowledged; default 1,048,576
	WhenFull       WhenFull

	// OnRejection is told of points that the gateway rejected for their
	// content. One call at a time, on a goroutine of the writer, which waits
	// for it: it must not wait for the writer.
	OnRejection func(Rejection)
}

// Rejection is a sample of rejected points; the other points of their records
// are stored.
type Rejection struct {
	Reason   Reason
	Key      string // or its index in decimal when it has none
	Step     int64  // of the first such point
	Sequence uint64 // the record with the point ends at or before it
	Field    string
	Detail   string // for people
	Points   uint64 // how many points this stands for
}

// Counters count the writer's points and records, since its first stream.
type Counters struct {
	AcceptedPoints uint64
	LatePoints     uint64
	RepeatedPoints uint64
	RejectedPoints uint64
	LostRecords    uint64
}

// Status is how far a writer has come.
type Status struct {
	LoggedSequence    uint64 // of the last record logged
	CommittedSequence uint64 // every record up to it is durable
	PendingPoints     int    // logged and not acknowledged
	Counters          Counters
	Finished          bool
	Streams           int   // streams opened so far
	Reconnects        int   // how often the gateway asked to move
	Err               error // why the writer gave up; nil while it has not
}

// Writer logs records of one process into one run. Made by Client.OpenWriter.
type Writer struct {
	client  *Client
	options WriterOptions
	open    *pb.WriteMetricsRequest
	cancel  context.CancelFunc
	wake    chan struct{} // the sender looks again
	done    chan struct{} // the writer's goroutine has ended

	telling sync.Mutex // held while OnRejection runs

	mutex     sync.Mutex
	changed   chan struct{} // closed and replaced when something below changes
	backlog   backlog
	keys      map[string]uint32
	names     []string  // by index
	flushTo   uint64    // records up to it do not linger
	refused   Rejection // points without an index, of which OnRejection is not told yet
	finishing bool
	closed    bool
	status    Status
}

// OpenWriter makes a writer. It does not wait for the gateway: failures are
// reported by Log, Flush and Finish.
func (c *Client) OpenWriter(options WriterOptions) (*Writer, error) {
	if options.RunID == "" {
		return nil, errors.New("headrace: WriterOptions.RunID is required")
	}
	if options.BatchPointsMax < 0 || options.BatchPointsMax > recordPointsMax {
		return nil, errors.New("headrace: WriterOptions.BatchPointsMax is at most 8,192")
	}
	if options.WriterID == "" {
		options.WriterID = NewID()
	}
	if options.Incarnation == "" {
		options.Incarnation = NewID()
	}
	if options.BatchPointsMax == 0 {
		options.BatchPointsMax = 4_096
	}
	if options.Linger == 0 {
		options.Linger = 50 * time.Millisecond
	}
	if options.WindowPoints <= 0 {
		options.WindowPoints = 1 << 20
	}
	ctx, cancel := context.WithCancel(context.Background())
	writer := &Writer{
		client:  c,
		options: options,
		open: &pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Open{Open: &pb.OpenWriter{
			RunId:            options.RunID,
			WriterId:         options.WriterID,
			Incarnation:      options.Incarnation,
			Rank:             options.Rank,
			Attempt:          options.Attempt,
			ResumeStep:       options.ResumeStep,
			ResumeExemptKeys: options.ResumeExemptKeys,
		}}},
		cancel:  cancel,
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
		backlog: backlog{batchPointsMax: options.BatchPointsMax},
		keys:    make(map[string]uint32),
	}
	go writer.run(ctx)
	return writer, nil
}

// Log logs one record: values at a step, now. Steps may come in any order, and
// again. It returns at once, unless the window is full and WhenFull is Block.
//
// Fails with ErrWindowFull, ErrWriterClosed, or the reason for which the writer
// gave up; the record is then not logged.
func (w *Writer) Log(step int64, values map[string]float64) error {
	return w.LogAt(step, time.Now().UnixMicro(), values)
}

// LogAt is Log at a time of the caller's, in microseconds since 1970-01-01 UTC.
func (w *Writer) LogAt(step, timeUnixUs int64, values map[string]float64) error {
	if len(values) == 0 {
		return nil
	}
	w.mutex.Lock()
	if err := w.admit(len(values)); err != nil {
		w.mutex.Unlock()
		return err
	}
	var (
		current *block
		ready   bool
		left    int // points that the record still takes
		rest    = len(values)
		refused = w.refused.Points
	)
	for key, value := range values {
		if left == 0 {
			left = min(rest, recordPointsMax)
			current = w.backlog.begin(left)
			ready = ready || len(current.ends) == 0
		}
		index, known := w.keys[key]
		if !known {
			index, known = w.define(key)
		}
		if known {
			current.index = append(current.index, index)
			current.step = append(current.step, step)
			current.time = append(current.time, timeUnixUs)
			current.value = append(current.value, value)
		} else if w.refused.Points++; w.refused.Points == 1 {
			w.refused.Key, w.refused.Step = key, step
		}
		rest--
		if left--; left == 0 {
			w.backlog.end(current)
			ready = ready || current.sealed
		}
	}
	if w.backlog.lastSequence <= w.status.CommittedSequence {
		w.backlog.forget(w.status.CommittedSequence) // logged by a predecessor
	}
	if w.refused.Points > refused {
		w.refused.Sequence = w.backlog.lastSequence
		ready = true
	}
	w.mutex.Unlock()
	if ready {
		w.wakeSender()
	}
	return nil
}

// admit waits for room in the window; the mutex is held, and released meanwhile.
func (w *Writer) admit(points int) error {
	for {
		if w.status.Err != nil {
			return w.status.Err
		}
		if w.closed || w.finishing {
			return ErrWriterClosed
		}
		if w.backlog.points == 0 || w.backlog.points+points <= w.options.WindowPoints {
			return nil
		}
		if w.options.WhenFull == Fail {
			return ErrWindowFull
		}
		changed := w.changed
		w.mutex.Unlock()
		<-changed
		w.mutex.Lock()
	}
}

// define returns the index of a key that is new, or not as it is sent; false
// when there is none left.
func (w *Writer) define(key string) (uint32, bool) {
	sent := strings.ToValidUTF8(key, "\uFFFD")
	if len(sent) > keyCharactersMax && utf8.RuneCountInString(sent) > keyCharactersMax {
		sent = string([]rune(sent)[:keyCharactersSent])
	}
	if index, known := w.keys[sent]; known {
		return index, true
	}
	if len(w.names) == keysMax {
		return 0, false
	}
	index := uint32(len(w.names))
	w.keys[sent] = index
	w.names = append(w.names, sent)
	return index, true
}

// tellRefused delivers what the client itself has refused. The sender calls it
// before it sends the records in question, so that Flush returns after it.
func (w *Writer) tellRefused() {
	w.mutex.Lock()
	refused := w.refused
	w.refused = Rejection{}
	w.mutex.Unlock()
	if refused.Points > 0 {
		refused.Reason, refused.Field = ReasonKeysExhausted, "keys"
		refused.Detail = "a writer has at most " + strconv.Itoa(keysMax) + " keys"
		w.tell(refused)
	}
}

func (w *Writer) tell(rejection Rejection) {
	if w.options.OnRejection != nil {
		w.telling.Lock()
		defer w.telling.Unlock()
		w.options.OnRejection(rejection)
	}
}

// Flush waits until everything logged before is committed.
//
// Fails with the error of ctx, or the reason for which the writer gave up.
func (w *Writer) Flush(ctx context.Context) error {
	w.mutex.Lock()
	target := w.backlog.lastSequence
	w.flushTo = max(w.flushTo, target)
	w.mutex.Unlock()
	w.wakeSender()
	return w.wait(ctx, func() bool { return w.status.CommittedSequence >= target })
}

// Finish waits until everything is committed and the gateway has noted that the
// writer ends, and closes it. Log fails from the call on. When ctx ends first,
// the writer goes on in the background; Finish may be called again.
func (w *Writer) Finish(ctx context.Context) error {
	w.mutex.Lock()
	w.finishing = true
	w.mutex.Unlock()
	w.wakeSender()
	if err := w.wait(ctx, func() bool { return w.status.Finished }); err != nil {
		return err
	}
	w.Close()
	return nil
}

// Close drops the writer without finishing it. What is not acknowledged is lost
// to this process; a later writer with the same ids continues. Idempotent.
func (w *Writer) Close() {
	w.mutex.Lock()
	w.closed = true
	w.announce()
	w.mutex.Unlock()
	w.cancel()
	<-w.done
}

// Status tells how far the writer has come.
func (w *Writer) Status() Status {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	status := w.status
	status.LoggedSequence = w.backlog.lastSequence
	status.PendingPoints = w.backlog.points
	return status
}

func (w *Writer) wait(ctx context.Context, reached func() bool) error {
	for {
		w.mutex.Lock()
		changed := w.changed
		over, failure, closed := reached(), w.status.Err, w.closed
		w.mutex.Unlock()
		switch {
		case failure != nil:
			return failure
		case over:
			return nil
		case closed:
			return ErrWriterClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// announce wakes all who wait for a change; the mutex is held.
func (w *Writer) announce() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *Writer) wakeSender() {
	select {
	case w.wake <- struct{}{}:
	default: // it is going to look anyway
	}
}

// run opens one stream after the other until the writer is finished, closed, or
// has failed.
func (w *Writer) run(ctx context.Context) {
	defer close(w.done)
	var retries backoff
	for ctx.Err() == nil {
		before := w.Status().CommittedSequence
		end := w.converse(ctx)
		status := w.Status()
		if status.Finished || ctx.Err() != nil {
			return
		}
		if status.CommittedSequence > before {
			retries.progress()
		}
		wait := end.moveAfter
		if !end.moved {
			failure := &Error{Code: codes.OK, Message: "the stream ended before the writer finished"}
			if end.err != nil {
				failure = failureOf(end.err)
			}
			var again bool
			if wait, again = retries.next(failure); !again {
				w.mutex.Lock()
				w.status.Err = failure
				w.announce()
				w.mutex.Unlock()
				return
			}
		}
		_ = sleep(ctx, wait)
	}
}
