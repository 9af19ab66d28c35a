// Command stubs streams metrics with nothing but protoc's output: stubs HOST:PORT.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pb "headrace.dev/headrace/v1"
)

func main() {
	ids := make([]byte, 48) // of the run, of the writer, of its incarnation
	_, _ = rand.Read(ids)
	run := fmt.Sprintf("%x", ids[:16])
	connection, _ := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	_, err := pb.NewRunServiceClient(connection).CreateRun(context.Background(), &pb.CreateRunRequest{RunId: run})
	stream, _ := pb.NewMetricServiceClient(connection).WriteMetrics(context.Background())
	writer := &pb.OpenWriter{RunId: run, WriterId: fmt.Sprintf("%x", ids[16:32]), Incarnation: fmt.Sprintf("%x", ids[32:])}
	_ = stream.Send(&pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Open{Open: writer}})
	keys := &pb.DefineKeys{Keys: []*pb.KeyDefinition{{Index: 0, Key: "loss"}}}
	_ = stream.Send(&pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Keys{Keys: keys}})
	for n := uint64(1); n <= 100; n++ {
		batch := &pb.MetricBatch{FirstSequence: n, RecordCount: 1, SeriesIndex: []uint32{0},
			Step: []int64{int64(n)}, TimeUnixUs: []int64{time.Now().UnixMicro()}, Value: []float64{1 / float64(n)}}
		_ = stream.Send(&pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Batch{Batch: batch}})
	}
	end := &pb.FinishWriter{LastSequence: 100}
	_ = stream.Send(&pb.WriteMetricsRequest{Message: &pb.WriteMetricsRequest_Finish{Finish: end}})
	for response := new(pb.WriteMetricsResponse); err == nil; response, err = stream.Recv() {
		if response.GetFinished() != nil {
			fmt.Println(run, response.GetFinished().GetCounters().GetAcceptedPoints())
		}
	}
}
