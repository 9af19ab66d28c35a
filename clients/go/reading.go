package headrace

import (
	"context"
	"errors"
	"io"

	pb "headrace.dev/headrace/v1"
)

// RankAggregation says how the ranks of one key become one series.
type RankAggregation = pb.RankAggregation

// The values of RankAggregation.
const (
	RankMean = pb.RankAggregation_RANK_AGGREGATION_MEAN
	RankMin  = pb.RankAggregation_RANK_AGGREGATION_MIN
	RankMax  = pb.RankAggregation_RANK_AGGREGATION_MAX
	RankSum  = pb.RankAggregation_RANK_AGGREGATION_SUM
)

// ReadOptions choose what ReadMetrics returns; the zero value is everything.
type ReadOptions struct {
	Keys            []string // none: all
	Ranks           []int32  // none: all
	RankAggregation RankAggregation
	FirstStep       *int64     // inclusive
	LastStep        *int64     // inclusive
	StepPolicy      StepPolicy // default: the run's
	MaxPoints       uint32     // of each series, chosen so that ends and extremes survive; 0: all
	IncludeHidden   bool       // points of earlier attempts that later ones hide
}

// Columns are the points of one series, ascending in step.
type Columns struct {
	Key        string
	Rank       int32 // -1 when aggregated over ranks
	Attempt    int32 // only with IncludeHidden, otherwise 0
	Steps      []int64
	TimeUnixUs []int64 // microseconds since 1970-01-01 UTC
	Values     []float64
}

// ReadMetrics reads points of a run from one consistent snapshot, ordered by
// key and rank. It has no deadline of its own.
func (c *Client) ReadMetrics(
	ctx context.Context, runID string, options ReadOptions,
) ([]*Columns, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.metrics.ReadMetrics(c.authorized(ctx), &pb.ReadMetricsRequest{
		RunId:           runID,
		Keys:            options.Keys,
		Ranks:           options.Ranks,
		RankAggregation: options.RankAggregation,
		FirstStep:       options.FirstStep,
		LastStep:        options.LastStep,
		StepPolicy:      options.StepPolicy,
		MaxPoints:       options.MaxPoints,
		IncludeHidden:   options.IncludeHidden,
	})
	if err != nil {
		return nil, errorOf(ctx, err)
	}
	var series []*Columns
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return series, nil
		}
		if err != nil {
			return nil, errorOf(ctx, err)
		}
		piece := response.GetColumns()
		if piece == nil {
			continue
		}
		last := len(series) - 1
		if last < 0 || series[last].Key != piece.GetKey() ||
			series[last].Rank != piece.GetRank() || series[last].Attempt != piece.GetAttempt() {
			series = append(series, &Columns{
				Key: piece.GetKey(), Rank: piece.GetRank(), Attempt: piece.GetAttempt(),
			})
			last++
		}
		into := series[last]
		into.Steps = append(into.Steps, piece.GetStep()...)
		into.TimeUnixUs = append(into.TimeUnixUs, piece.GetTimeUnixUs()...)
		into.Values = append(into.Values, piece.GetValue()...)
	}
}

// Series is a series and the summary of its visible points.
type Series struct {
	Key            string
	Rank           int32
	PointCount     uint64 // repeats included
	LastStep       int64
	LastTimeUnixUs int64
	LastValue      float64
	MinValue       float64 // NaN ignored; NaN if all are
	MaxValue       float64
}

// ListSeriesOptions choose what ListSeries returns; the zero value is everything.
type ListSeriesOptions struct {
	KeyPrefix string
	PageSize  int32 // of one call to the gateway; 0: its default
}

// ListSeries lists the series of a run, ordered by key and rank; all pages.
func (c *Client) ListSeries(
	ctx context.Context, runID string, options ListSeriesOptions,
) ([]Series, error) {
	var series []Series
	request := &pb.ListSeriesRequest{
		RunId: runID, KeyPrefix: options.KeyPrefix, PageSize: options.PageSize,
	}
	for {
		page, err := unary(ctx, c, c.metrics.ListSeries, request)
		if err != nil {
			return nil, err
		}
		for _, one := range page.GetSeries() {
			series = append(series, Series{
				Key:            one.GetKey(),
				Rank:           one.GetRank(),
				PointCount:     one.GetPointCount(),
				LastStep:       one.GetLastStep(),
				LastTimeUnixUs: one.GetLastTimeUnixUs(),
				LastValue:      one.GetLastValue(),
				MinValue:       one.GetMinValue(),
				MaxValue:       one.GetMaxValue(),
			})
		}
		if page.GetNextPageToken() == "" {
			return series, nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}
