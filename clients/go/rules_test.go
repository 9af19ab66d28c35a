package headrace

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	pb "headrace.dev/headrace/v1"
)

func TestAnIDIsAUUIDOfVersion7(t *testing.T) {
	form := regexp.MustCompile(`^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$`)
	if id := NewID(); !form.MatchString(id) || id == NewID() {
		t.Fatalf("the id is %s", id)
	}
}

func TestThePartSizeFollowsFromTheSize(t *testing.T) {
	for size, expected := range map[uint64]uint64{
		17 << 20: 16 << 20, 1 << 30: 16 << 20, 1<<30 + 1: 64 << 20, 5 << 40: 1 << 30,
	} {
		if part := partSize(size); part != expected {
			t.Errorf("parts of a file of %d bytes have %d; expected %d", size, part, expected)
		}
	}
}

func TestAddressesAreOfOneKind(t *testing.T) {
	hosts, encrypted, err := splitAddresses("https://a:1, https://b:2")
	if err != nil || !encrypted || len(hosts) != 2 || hosts[1] != "b:2" {
		t.Fatal(hosts, encrypted, err)
	}
	for _, bad := range []string{"a", "a:1,https://b:2", ""} {
		if _, _, err := splitAddresses(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestWaitsGrowAndStayBelowTheirLimit(t *testing.T) {
	var retries backoff
	unavailable := &Error{Code: codes.Unavailable}
	for range 100 {
		wait, again := retries.next(unavailable)
		if !again || wait < backoffFirst/2 || wait > backoffMax {
			t.Fatal(wait, again)
		}
	}
	patient := &Error{Code: codes.Unavailable, Reason: "OVERLOADED", retryAfter: time.Minute}
	if wait, _ := retries.next(patient); wait != time.Minute {
		t.Fatal(wait)
	}
}

func TestFailuresThatResumingDoesNotCureEnd(t *testing.T) {
	var retries backoff
	gap := &Error{Code: codes.InvalidArgument, Reason: "SEQUENCE_GAP"}
	for range resumesMax {
		if _, again := retries.next(gap); !again {
			t.Fatal("ended too soon")
		}
	}
	if _, again := retries.next(gap); again {
		t.Fatal("goes on for ever")
	}
	for _, last := range []*Error{
		{Code: codes.Aborted, Reason: ReasonWriterFenced},
		{Code: codes.Unauthenticated, Reason: "UNAUTHENTICATED"},
		{Code: codes.Unimplemented},
	} {
		if _, again := new(backoff).next(last); again {
			t.Errorf("%v is tried again", last)
		}
	}
}

func TestLongKeysShareAnIndexAndInvalidUTF8IsReplaced(t *testing.T) {
	writer := &Writer{keys: make(map[string]uint32)}
	long := strings.Repeat("ß", 300)
	first, _ := writer.define(long)
	second, _ := writer.define(long + "x")
	if first != second || len([]rune(writer.names[first])) != keyCharactersSent {
		t.Fatal(first, second, writer.names)
	}
	if index, _ := writer.define("a\xffb"); writer.names[index] != "a\uFFFDb" {
		t.Fatalf("%q", writer.names[index])
	}
}

func TestEveryReasonOfTheContractHasARemedy(t *testing.T) {
	retried := map[string]retry{
		"SEQUENCE_GAP": resume, "UNKNOWN_KEY_INDEX": resume, "TRANSFER_STALLED": resume,
		"DIGEST_MISMATCH": resume, "UPLOAD_NOT_FOUND": resume, "UPLOAD_INCOMPLETE": resume,
		"OVERLOADED": later, "STORE_UNAVAILABLE": later, "DRAINING": later, "INTERNAL": later,
		"BLOB_STORE_UNAVAILABLE": later,
	}
	for name := range pb.ErrorReason_value {
		reason := name[len("ERROR_REASON_"):]
		failure := &Error{Code: codes.Unavailable, Reason: Reason(reason)}
		if expected := retried[reason]; failure.retry() != expected {
			t.Errorf("%s: %v; expected %v", reason, failure.retry(), expected)
		}
	}
}

func TestPointsOfKeysBeyondTheLastAreToldOfBeforeTheyAreSentAndNotByLog(t *testing.T) {
	var told []Rejection
	writer := &Writer{
		options: WriterOptions{
			WindowPoints: 1 << 20,
			OnRejection:  func(rejection Rejection) { told = append(told, rejection) },
		},
		wake:    make(chan struct{}, 1),
		backlog: backlog{batchPointsMax: recordPointsMax},
		keys:    make(map[string]uint32),
	}
	for i := range keysMax {
		writer.define(strconv.Itoa(i))
	}
	for step := range int64(2) {
		if err := writer.Log(step, map[string]float64{"0": 1, "one more": 2}); err != nil {
			t.Fatal(err)
		}
	}
	if len(told) > 0 {
		t.Fatal("Log called back")
	}
	writer.tellRefused()
	writer.tellRefused()
	if len(told) != 1 || told[0].Reason != ReasonKeysExhausted || told[0].Key != "one more" ||
		told[0].Points != 2 || told[0].Step != 0 || told[0].Sequence != 2 {
		t.Fatal(told)
	}
}
