package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"headrace.dev/headrace"
	pb "headrace.dev/headrace/v1"
)

// step holds the fields of all kinds of steps.
type step struct {
	Do               string            `json:"do"`
	RunID            string            `json:"run_id"`
	Experiment       string            `json:"experiment"`
	Name             string            `json:"name"`
	StepPolicy       string            `json:"step_policy"`
	LatePolicy       string            `json:"late_policy"`
	Attempt          int32             `json:"attempt"`
	State            string            `json:"state"`
	Writer           string            `json:"writer"`
	WriterID         string            `json:"writer_id"`
	Incarnation      string            `json:"incarnation"`
	Rank             int32             `json:"rank"`
	ResumeStep       *int64            `json:"resume_step"`
	ResumeExemptKeys []string          `json:"resume_exempt_keys"`
	BatchPointsMax   int               `json:"batch_points_max"`
	LingerMs         int64             `json:"linger_ms"`
	WindowPoints     int               `json:"window_points"`
	WhenFull         string            `json:"when_full"`
	Points           []json.RawMessage `json:"points"`
	FirstStep        *int64            `json:"first_step"`
	LastStep         *int64            `json:"last_step"`
	Count            int64             `json:"count"`
	Keys             json.RawMessage   `json:"keys"`
	DeadlineMs       int64             `json:"deadline_ms"`
	Ranks            []int32           `json:"ranks"`
	RankAggregation  string            `json:"rank_aggregation"`
	MaxPoints        uint32            `json:"max_points"`
	IncludeHidden    bool              `json:"include_hidden"`
	KeyPrefix        string            `json:"key_prefix"`
	PageSize         int32             `json:"page_size"`
	Path             string            `json:"path"`
	File             string            `json:"file"`
	Folder           string            `json:"folder"`
	Recursive        bool              `json:"recursive"`
}

type outcome map[string]any

// value is a number as the scenarios write it.
type value float64

func (v value) MarshalJSON() ([]byte, error) {
	switch number := float64(v); {
	case math.IsNaN(number):
		return []byte(`"NaN"`), nil
	case math.IsInf(number, 1):
		return []byte(`"Infinity"`), nil
	case math.IsInf(number, -1):
		return []byte(`"-Infinity"`), nil
	default:
		return json.Marshal(number)
	}
}

func (v *value) UnmarshalJSON(text []byte) error {
	switch string(text) {
	case `"NaN"`:
		*v = value(math.NaN())
	case `"Infinity"`:
		*v = value(math.Inf(1))
	case `"-Infinity"`:
		*v = value(math.Inf(-1))
	default:
		return json.Unmarshal(text, (*float64)(v))
	}
	return nil
}

// reported is a writer and the rejections it was told of.
type reported struct {
	*headrace.Writer
	mutex      sync.Mutex
	rejections []outcome
}

type replay struct {
	client    *headrace.Client
	directory string
	input     *bufio.Reader
	output    *json.Encoder
	writers   map[string]*reported
}

func (r *replay) run(steps []step) error {
	outcomes := make([]outcome, 0, len(steps))
	for index, one := range steps {
		started := time.Now()
		result, err := r.step(index, &one)
		if result == nil {
			result = outcome{}
		}
		if err != nil {
			result["error"] = reasonOf(err)
		}
		result["elapsed_ms"] = float64(time.Since(started).Microseconds()) / 1e3
		outcomes = append(outcomes, result)
	}
	reports := outcome{}
	for name, writer := range r.writers {
		reports[name] = report(writer)
	}
	return r.output.Encode(outcome{"result": outcome{"steps": outcomes, "writers": reports}})
}

func (r *replay) step(index int, s *step) (outcome, error) {
	ctx := context.Background()
	switch s.Do {
	case "fault":
		if err := r.output.Encode(outcome{"fault": index}); err != nil {
			return nil, err
		}
		_, err := r.input.ReadString('\n')
		return nil, err
	case "create_run":
		run, err := r.client.CreateRun(ctx, headrace.RunOptions{
			RunID: s.RunID, Experiment: s.Experiment, Name: s.Name,
			StepPolicy: headrace.StepPolicy(pb.StepPolicy_value["STEP_POLICY_"+s.StepPolicy]),
			LatePolicy: headrace.LatePolicy(pb.LatePolicy_value["LATE_POLICY_"+s.LatePolicy]),
		})
		if err != nil {
			return nil, err
		}
		return outcome{"created": run.Created}, nil
	case "get_run":
		return r.getRun(ctx, s)
	case "finish_run":
		state := headrace.RunState(pb.RunState_value["RUN_STATE_"+s.State])
		applied, err := r.client.FinishRun(ctx, s.RunID, s.Attempt, state)
		return outcome{"applied": applied}, err
	case "heartbeat_run":
		return nil, r.client.HeartbeatRun(ctx, s.RunID)
	case "open_writer":
		return nil, r.openWriter(s)
	case "log":
		return r.log(s)
	case "flush":
		ctx, cancel := s.deadline(ctx)
		defer cancel()
		return nil, r.writers[s.Writer].Flush(ctx)
	case "finish":
		ctx, cancel := s.deadline(ctx)
		defer cancel()
		return nil, r.writers[s.Writer].Finish(ctx)
	case "close":
		r.writers[s.Writer].Close()
		return nil, nil
	case "read":
		return r.read(ctx, s)
	case "list_series":
		return r.listSeries(ctx, s)
	case "upload":
		artifact, err := r.client.UploadArtifact(
			ctx, s.RunID, s.Path, filepath.Join(r.directory, s.File), headrace.UploadOptions{})
		return artifactOutcome(artifact), err
	case "download":
		artifact, err := r.client.DownloadArtifact(
			ctx, s.RunID, s.Path, filepath.Join(r.directory, s.File))
		return artifactOutcome(artifact), err
	case "list_artifacts":
		return r.listArtifacts(ctx, s)
	}
	return nil, fmt.Errorf("there is no step %q", s.Do)
}

func (s *step) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.DeadlineMs == 0 {
		s.DeadlineMs = 30_000
	}
	return context.WithTimeout(ctx, time.Duration(s.DeadlineMs)*time.Millisecond)
}

func (r *replay) getRun(ctx context.Context, s *step) (outcome, error) {
	run, err := r.client.GetRun(ctx, s.RunID)
	if err != nil {
		return nil, err
	}
	attempts := []outcome{}
	for _, attempt := range run.Attempts {
		attempts = append(attempts, outcome{
			"attempt": attempt.Attempt, "resume_step": attempt.ResumeStep,
		})
	}
	state := strings.TrimPrefix(run.State.String(), "RUN_STATE_")
	return outcome{"state": state, "attempts": attempts}, nil
}

func (r *replay) openWriter(s *step) error {
	writer := new(reported)
	options := headrace.WriterOptions{
		RunID: s.RunID, WriterID: s.WriterID, Incarnation: s.Incarnation,
		Rank: s.Rank, Attempt: s.Attempt,
		ResumeStep: s.ResumeStep, ResumeExemptKeys: s.ResumeExemptKeys,
		BatchPointsMax: s.BatchPointsMax,
		Linger:         time.Duration(s.LingerMs) * time.Millisecond,
		WindowPoints:   s.WindowPoints,
		OnRejection: func(rejection headrace.Rejection) {
			writer.mutex.Lock()
			defer writer.mutex.Unlock()
			writer.rejections = append(writer.rejections, outcome{
				"reason": rejection.Reason, "key": rejection.Key,
				"step": rejection.Step, "points": rejection.Points,
			})
		},
	}
	if s.WhenFull == "error" {
		options.WhenFull = headrace.Fail
	}
	var err error
	writer.Writer, err = r.client.OpenWriter(options)
	r.writers[s.Writer] = writer
	return err
}

func (r *replay) log(s *step) (outcome, error) {
	writer := r.writers[s.Writer]
	logged, refused := 0, 0
	var first error
	record := func(step int64, values map[string]float64) {
		if err := writer.Log(step, values); err != nil {
			refused++
			if first == nil {
				first = err
			}
			return
		}
		logged++
	}
	for _, point := range s.Points {
		var step int64
		var values map[string]value
		if err := json.Unmarshal(point, &[]any{&step, &values}); err != nil {
			return nil, err
		}
		numbers := make(map[string]float64, len(values))
		for key, number := range values {
			numbers[key] = float64(number)
		}
		record(step, numbers)
	}
	if s.Points == nil {
		keys, err := s.keys()
		if err != nil {
			return nil, err
		}
		values := make(map[string]float64, len(keys))
		for step := *s.FirstStep; step < *s.FirstStep+s.Count; step++ {
			for index, key := range keys {
				values[key] = float64(step) + float64(index)/8
			}
			record(step, values)
		}
	}
	return outcome{"logged": logged, "refused": refused}, first
}

func (s *step) keys() ([]string, error) {
	var count int
	if json.Unmarshal(s.Keys, &count) == nil && count > 0 {
		keys := make([]string, count)
		for index := range keys {
			keys[index] = fmt.Sprintf("key/%d", index)
		}
		return keys, nil
	}
	var keys []string
	if s.Keys == nil {
		return nil, nil
	}
	return keys, json.Unmarshal(s.Keys, &keys)
}

func (r *replay) read(ctx context.Context, s *step) (outcome, error) {
	keys, err := s.keys()
	if err != nil {
		return nil, err
	}
	columns, err := r.client.ReadMetrics(ctx, s.RunID, headrace.ReadOptions{
		Keys: keys, Ranks: s.Ranks,
		RankAggregation: headrace.RankAggregation(
			pb.RankAggregation_value["RANK_AGGREGATION_"+s.RankAggregation]),
		FirstStep: s.FirstStep, LastStep: s.LastStep,
		StepPolicy: headrace.StepPolicy(pb.StepPolicy_value["STEP_POLICY_"+s.StepPolicy]),
		MaxPoints:  s.MaxPoints, IncludeHidden: s.IncludeHidden,
	})
	if err != nil {
		return nil, err
	}
	series := []outcome{}
	for _, one := range columns {
		values := make([]value, len(one.Values))
		for i, number := range one.Values {
			values[i] = value(number)
		}
		series = append(series, outcome{
			"key": one.Key, "rank": one.Rank, "steps": one.Steps, "values": values,
		})
	}
	return outcome{"series": series}, nil
}

func (r *replay) listSeries(ctx context.Context, s *step) (outcome, error) {
	listed, err := r.client.ListSeries(ctx, s.RunID, headrace.ListSeriesOptions{
		KeyPrefix: s.KeyPrefix, PageSize: s.PageSize,
	})
	if err != nil {
		return nil, err
	}
	series := []outcome{}
	for _, one := range listed {
		series = append(series, outcome{
			"key": one.Key, "rank": one.Rank, "point_count": one.PointCount,
			"last_step": one.LastStep, "last_value": value(one.LastValue),
			"min_value": value(one.MinValue), "max_value": value(one.MaxValue),
		})
	}
	return outcome{"series": series}, nil
}

func (r *replay) listArtifacts(ctx context.Context, s *step) (outcome, error) {
	listed, err := r.client.ListArtifacts(ctx, s.RunID, headrace.ListArtifactsOptions{
		Folder: s.Folder, Recursive: s.Recursive, PageSize: s.PageSize,
	})
	if err != nil {
		return nil, err
	}
	entries := []string{}
	for _, entry := range listed {
		if entry.Artifact != nil {
			entries = append(entries, entry.Artifact.Path)
		} else {
			entries = append(entries, entry.Folder+"/")
		}
	}
	return outcome{"entries": entries}, nil
}

func artifactOutcome(artifact *headrace.Artifact) outcome {
	if artifact == nil {
		return nil
	}
	return outcome{
		"size": artifact.Size, "digest": hex.EncodeToString(artifact.Digest),
		"deduplicated": artifact.Deduplicated,
	}
}

func report(writer *reported) outcome {
	status := writer.Status()
	writer.mutex.Lock()
	defer writer.mutex.Unlock()
	rejections := writer.rejections
	if rejections == nil {
		rejections = []outcome{}
	}
	var failure any
	if status.Err != nil {
		failure = reasonOf(status.Err)
	}
	return outcome{
		"committed_sequence": status.CommittedSequence,
		"counters": outcome{
			"accepted_points": status.Counters.AcceptedPoints,
			"late_points":     status.Counters.LatePoints,
			"repeated_points": status.Counters.RepeatedPoints,
			"rejected_points": status.Counters.RejectedPoints,
			"lost_records":    status.Counters.LostRecords,
		},
		"rejections":     rejections,
		"error":          failure,
		"finished":       status.Finished,
		"streams":        status.Streams,
		"reconnects":     status.Reconnects,
		"refused_points": 0,
	}
}

func reasonOf(err error) string {
	var failure *headrace.Error
	switch {
	case errors.As(err, &failure) && failure.Reason != "":
		return string(failure.Reason)
	case errors.Is(err, headrace.ErrWindowFull):
		return "WINDOW_FULL"
	case errors.Is(err, headrace.ErrWriterClosed):
		return "WRITER_CLOSED"
	case errors.Is(err, context.DeadlineExceeded):
		return "DEADLINE_EXCEEDED"
	case failure != nil:
		return canonical(failure.Code)
	}
	return err.Error()
}

// canonical spells a code as gRPC's specification does.
func canonical(code codes.Code) string {
	var name strings.Builder
	for i, letter := range code.String() {
		if i > 0 && letter >= 'A' && letter <= 'Z' {
			name.WriteByte('_')
		}
		name.WriteRune(letter)
	}
	return strings.ToUpper(name.String())
}
