package headrace

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "headrace.dev/headrace/v1"
)

// Reason says why a call failed or a point was rejected: an ErrorReason of the
// contract without its prefix, for example "RUN_NOT_FOUND".
type Reason string

// Reasons that callers usually handle. All are documented at ErrorReason in
// protos/headrace/v1/error_reason.proto.
const (
	ReasonRunNotFound      Reason = "RUN_NOT_FOUND"
	ReasonRunExists        Reason = "RUN_EXISTS"
	ReasonWriterClaimed    Reason = "WRITER_CLAIMED"
	ReasonWriterFenced     Reason = "WRITER_FENCED"
	ReasonWriterFinished   Reason = "WRITER_FINISHED"
	ReasonStepLate         Reason = "STEP_LATE"
	ReasonKeyInvalid       Reason = "KEY_INVALID"
	ReasonKeysExhausted    Reason = "KEYS_EXHAUSTED"
	ReasonArtifactNotFound Reason = "ARTIFACT_NOT_FOUND"
	ReasonArtifactChanged  Reason = "ARTIFACT_CHANGED"
	ReasonDigestMismatch   Reason = "DIGEST_MISMATCH"
	ReasonUploadNotFound   Reason = "UPLOAD_NOT_FOUND"
	ReasonUploadIncomplete Reason = "UPLOAD_INCOMPLETE"
)

var (
	// ErrWindowFull says that Log found the window full and WhenFull is Fail.
	// The record was not logged.
	ErrWindowFull = errors.New("headrace: the window of unacknowledged points is full")
	// ErrWriterClosed says that the writer was finished or closed by its user.
	ErrWriterClosed = errors.New("headrace: the writer is closed")
)

// Error is a failure that the gateway reported, or a call that did not reach it.
type Error struct {
	// Reason is empty when the failure carried none: it did not come from a
	// gateway, but from the connection to it.
	Reason Reason
	// Code is the gRPC status.
	Code codes.Code
	// Message is for people.
	Message string
	// Metadata holds the offending field, value and limit, where they apply.
	Metadata map[string]string

	retryAfter time.Duration
}

func (e *Error) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("headrace: %s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("headrace: %s: %s", e.Reason, e.Message)
}

// ReasonOf returns the reason of an error of this package; "" when it has none.
func ReasonOf(err error) Reason {
	var failure *Error
	if errors.As(err, &failure) {
		return failure.Reason
	}
	return ""
}

// retry is what the contract says a client does after a failure.
type retry int

const (
	never  retry = iota
	resume       // reopen and continue; a defect if it recurs without progress
	later        // resume after a wait
)

func (e *Error) retry() retry {
	switch e.Reason {
	case "SEQUENCE_GAP", "UNKNOWN_KEY_INDEX", "TRANSFER_STALLED", ReasonDigestMismatch,
		ReasonUploadNotFound, ReasonUploadIncomplete:
		return resume
	case "OVERLOADED", "STORE_UNAVAILABLE", "DRAINING", "INTERNAL", "BLOB_STORE_UNAVAILABLE":
		return later
	}
	if _, known := pb.ErrorReason_value["ERROR_REASON_"+string(e.Reason)]; known {
		return never
	}
	switch e.Code { // no reason, or one of a newer gateway
	case codes.Unavailable, codes.Unknown, codes.Internal, codes.Canceled,
		codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.OK:
		return later
	}
	return never
}

// errorOf turns what gRPC returned into an *Error; nil and the errors of ctx
// stay what they are.
func errorOf(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return failureOf(err)
}

func failureOf(err error) *Error {
	var failure *Error
	if errors.As(err, &failure) {
		return failure
	}
	from := status.Convert(err)
	failure = &Error{Code: from.Code(), Message: from.Message()}
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			failure.Reason = Reason(detail.GetReason())
			failure.Metadata = detail.GetMetadata()
		case *errdetails.RetryInfo:
			failure.retryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return failure
}

const (
	backoffFirst = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
	// resumesMax failures in a row that "resume" should have cured, without
	// progress, are a defect that no further attempt will cure.
	resumesMax = 5
)

// backoff decides how long to wait before the next attempt.
type backoff struct {
	failures int
	resumes  int
}

// progress forgets the failures.
func (b *backoff) progress() { *b = backoff{} }

// next counts a failure and returns the wait; false when there is to be no
// further attempt. Half of the wait is random, so that those who failed
// together do not return together.
func (b *backoff) next(failure *Error) (time.Duration, bool) {
	switch failure.retry() {
	case never:
		return 0, false
	case resume:
		b.resumes++
		if b.resumes > resumesMax {
			return 0, false
		}
	case later:
	}
	wait := min(backoffFirst<<min(b.failures, 10), backoffMax)
	b.failures++
	wait = wait/2 + rand.N(wait/2)
	return max(wait, failure.retryAfter), true
}

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
