"""Streams metrics with nothing but protoc's output. Usage: stream_metrics.py ADDRESS"""

import sys
import time
import uuid

import grpc
from headrace.v1 import metric_service_pb2 as pb
from headrace.v1 import metric_service_pb2_grpc, run_service_pb2, run_service_pb2_grpc


def requests(run_id):
    writer = pb.OpenWriter(run_id=run_id, writer_id=uuid.uuid4().hex, incarnation=uuid.uuid4().hex)
    yield pb.WriteMetricsRequest(open=writer)
    keys = [pb.KeyDefinition(index=0, key="loss")]
    yield pb.WriteMetricsRequest(keys=pb.DefineKeys(keys=keys))
    for sequence in range(1, 101):
        yield pb.WriteMetricsRequest(
            batch=pb.MetricBatch(
                first_sequence=sequence,
                record_count=1,
                series_index=[0],
                step=[sequence],
                time_unix_us=[time.time_ns() // 1000],
                value=[1 / sequence],
            )
        )
    yield pb.WriteMetricsRequest(finish=pb.FinishWriter(last_sequence=100))


with grpc.insecure_channel(sys.argv[1]) as channel:
    run = run_service_pb2.CreateRunRequest(run_id=uuid.uuid4().hex)
    run_service_pb2_grpc.RunServiceStub(channel).CreateRun(run)
    stub = metric_service_pb2_grpc.MetricServiceStub(channel)
    for response in stub.WriteMetrics(requests(run.run_id)):
        if response.HasField("finished"):
            print(run.run_id, response.finished.counters.accepted_points)
