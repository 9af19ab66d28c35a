package headrace

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "headrace.dev/headrace/v1"
)

// DefaultAddress is where a gateway listens unless told otherwise.
const DefaultAddress = "127.0.0.1:7420"

const (
	callTimeout      = 30 * time.Second
	messageBytesMax  = 2 << 20 // a read's message holds 768 KiB of points
	keepalivePeriod  = 60 * time.Second
	keepaliveTimeout = 20 * time.Second
)

// Client talks to one gateway, or to several that share a database.
type Client struct {
	connection *grpc.ClientConn
	token      string
	runs       pb.RunServiceClient
	metrics    pb.MetricServiceClient
	artifacts  pb.ArtifactServiceClient
}

// Option changes how Connect connects.
type Option func(*options)

type options struct {
	token string
	tls   *tls.Config
	dial  []grpc.DialOption
}

// WithToken sends a bearer token with every call.
func WithToken(token string) Option { return func(o *options) { o.token = token } }

// WithTLS uses a TLS configuration other than the system's authorities; the
// addresses must begin with https://.
func WithTLS(config *tls.Config) Option { return func(o *options) { o.tls = config } }

// WithDialOptions adds options of gRPC.
func WithDialOptions(dial ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, dial...) }
}

// Connect prepares a client; it does not wait for the gateway.
//
// addresses is `host:port` (plain text) or `https://host:port` (TLS), or several
// of one kind separated by commas: calls and streams then take turns.
func Connect(addresses string, opts ...Option) (*Client, error) {
	var chosen options
	for _, opt := range opts {
		opt(&chosen)
	}
	hosts, encrypted, err := splitAddresses(addresses)
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if encrypted {
		transport = credentials.NewTLS(chosen.tls)
	} else if chosen.tls != nil {
		return nil, errors.New("headrace: WithTLS needs addresses that begin with https://")
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepalivePeriod, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: grpcbackoff.Config{
				BaseDelay: backoffFirst, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
			},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax)),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
	}
	target := "dns:///" + hosts[0]
	if len(hosts) > 1 {
		state := resolver.State{}
		for _, host := range hosts {
			name, _, _ := net.SplitHostPort(host)
			state.Addresses = append(state.Addresses, resolver.Address{Addr: host, ServerName: name})
		}
		several := manual.NewBuilderWithScheme("headrace")
		several.InitialState(state)
		dial = append(dial, grpc.WithResolvers(several))
		target = "headrace:///gateways"
	}
	connection, err := grpc.NewClient(target, append(dial, chosen.dial...)...)
	if err != nil {
		return nil, fmt.Errorf("headrace: %w", err)
	}
	return &Client{
		connection: connection,
		token:      chosen.token,
		runs:       pb.NewRunServiceClient(connection),
		metrics:    pb.NewMetricServiceClient(connection),
		artifacts:  pb.NewArtifactServiceClient(connection),
	}, nil
}

// Close ends the connection, and with it the writers: what they have not sent
// is lost. Finish them before.
func (c *Client) Close() error { return c.connection.Close() }

func splitAddresses(addresses string) (hosts []string, encrypted bool, err error) {
	for i, address := range strings.Split(addresses, ",") {
		address = strings.TrimSuffix(strings.TrimSpace(address), "/")
		host, isTLS := strings.CutPrefix(address, "https://")
		host = strings.TrimPrefix(host, "http://")
		if _, _, splitErr := net.SplitHostPort(host); splitErr != nil {
			return nil, false, fmt.Errorf("headrace: the address %q is not host:port", address)
		}
		if i > 0 && isTLS != encrypted {
			return nil, false, errors.New("headrace: some addresses begin with https:// and some do not")
		}
		encrypted = isTLS
		hosts = append(hosts, host)
	}
	return hosts, encrypted, nil
}

// authorized adds the token to the metadata of a call.
func (c *Client) authorized(ctx context.Context) context.Context {
	if c.token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// unary calls method with the token, and with the default deadline where ctx has none.
func unary[Request, Response any](
	ctx context.Context,
	c *Client,
	method func(context.Context, Request, ...grpc.CallOption) (Response, error),
	request Request,
) (Response, error) {
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	response, err := method(c.authorized(ctx), request)
	return response, errorOf(ctx, err)
}

// NewID makes an id for a run, a writer or an incarnation: a UUID of version 7
// as 32 lower-case hex digits.
func NewID() string {
	var id [16]byte
	milliseconds := time.Now().UnixMilli()
	for i := range 6 {
		id[i] = byte(milliseconds >> (40 - 8*i))
	}
	_, _ = rand.Read(id[6:]) // never fails
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return hex.EncodeToString(id[:])
}

// What a run's job is doing, and how its steps are read and written; see
// protos/headrace/v1/run_service.proto.
type (
	RunState   = pb.RunState
	StepPolicy = pb.StepPolicy
	LatePolicy = pb.LatePolicy
)

// The values of RunState, StepPolicy and LatePolicy.
const (
	RunRunning  = pb.RunState_RUN_STATE_RUNNING
	RunFinished = pb.RunState_RUN_STATE_FINISHED
	RunFailed   = pb.RunState_RUN_STATE_FAILED
	RunKilled   = pb.RunState_RUN_STATE_KILLED
	RunLost     = pb.RunState_RUN_STATE_LOST

	StepLast  = pb.StepPolicy_STEP_POLICY_LAST
	StepFirst = pb.StepPolicy_STEP_POLICY_FIRST
	StepAll   = pb.StepPolicy_STEP_POLICY_ALL

	LateAccept = pb.LatePolicy_LATE_POLICY_ACCEPT
	LateReject = pb.LatePolicy_LATE_POLICY_REJECT
)

// RunOptions describe a run to be created. All fields have defaults.
type RunOptions struct {
	RunID      string // 32 lower-case hex digits; default NewID()
	Experiment string // default `Default`
	Name       string // for people
	StepPolicy StepPolicy
	LatePolicy LatePolicy
}

// Attempt is one (re)start of a run's job.
type Attempt struct {
	Attempt    int32
	ResumeStep *int64 // nil: hides nothing
	StartTime  time.Time
}

// Run is one training job.
type Run struct {
	ID         string
	Experiment string
	Name       string
	State      RunState
	StepPolicy StepPolicy
	LatePolicy LatePolicy
	CreateTime time.Time
	EndTime    time.Time // zero while running
	Attempts   []Attempt
	// Created tells whether CreateRun made it; false when it existed already.
	Created bool
}

// CreateRun creates a run, or returns the one that has this id. Fails with
// RUN_EXISTS when that one has other policies. Its experiment stays what it is.
func (c *Client) CreateRun(ctx context.Context, options RunOptions) (*Run, error) {
	if options.RunID == "" {
		options.RunID = NewID()
	}
	response, err := unary(ctx, c, c.runs.CreateRun, &pb.CreateRunRequest{
		RunId:      options.RunID,
		Experiment: options.Experiment,
		Name:       options.Name,
		StepPolicy: options.StepPolicy,
		LatePolicy: options.LatePolicy,
	})
	if err != nil {
		return nil, err
	}
	run := runOf(response.GetRun())
	run.Created = response.GetCreated()
	return run, nil
}

// GetRun reads a run. Fails with RUN_NOT_FOUND.
func (c *Client) GetRun(ctx context.Context, runID string) (*Run, error) {
	response, err := unary(ctx, c, c.runs.GetRun, &pb.GetRunRequest{RunId: runID})
	if err != nil {
		return nil, err
	}
	return runOf(response.GetRun()), nil
}

// FinishRun ends a run. attempt 0 means 1; the state is RunFinished, RunFailed
// or RunKilled. Returns false when a newer attempt exists: nothing was changed.
func (c *Client) FinishRun(
	ctx context.Context, runID string, attempt int32, state RunState,
) (applied bool, err error) {
	response, err := unary(ctx, c, c.runs.FinishRun, &pb.FinishRunRequest{
		RunId: runID, Attempt: attempt, State: state,
	})
	return response.GetApplied(), err
}

// HeartbeatRun says that the run's job is alive. Not needed while a writer is open.
func (c *Client) HeartbeatRun(ctx context.Context, runID string) error {
	_, err := unary(ctx, c, c.runs.HeartbeatRun, &pb.HeartbeatRunRequest{RunId: runID})
	return err
}

func runOf(run *pb.Run) *Run {
	result := &Run{
		ID:         run.GetRunId(),
		Experiment: run.GetExperiment(),
		Name:       run.GetName(),
		State:      run.GetState(),
		StepPolicy: run.GetStepPolicy(),
		LatePolicy: run.GetLatePolicy(),
		CreateTime: timeOf(run.GetCreateTime()),
		EndTime:    timeOf(run.GetEndTime()),
	}
	for _, attempt := range run.GetAttempts() {
		result.Attempts = append(result.Attempts, Attempt{
			Attempt:    attempt.GetAttempt(),
			ResumeStep: attempt.ResumeStep,
			StartTime:  timeOf(attempt.GetStartTime()),
		})
	}
	return result
}

func timeOf(stamp *timestamppb.Timestamp) time.Time {
	if stamp == nil {
		return time.Time{}
	}
	return stamp.AsTime()
}
