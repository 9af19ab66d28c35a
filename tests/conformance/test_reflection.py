"""What grpcurl does, by the reflection protocol: list, describe, call what was described."""

import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict, ParseDict
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.gateway_process import GatewayProcess


@pytest.fixture
def channel(shared_gateway: GatewayProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(shared_gateway.address) as opened:
        yield opened


def ask(channel: grpc.Channel, **question: str) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(**question)
    return next(iter(stub.ServerReflectionInfo(iter([request]))))


def described(channel: grpc.Channel, symbol: str) -> descriptor_pool.DescriptorPool:
    """Return a pool of what the gateway says of a symbol, and of all that it imports."""
    pool = descriptor_pool.DescriptorPool()
    answer = ask(channel, file_containing_symbol=symbol)
    files = {}
    pending = list(answer.file_descriptor_response.file_descriptor_proto)
    while pending:
        file = descriptor_pb2.FileDescriptorProto.FromString(pending.pop())
        if file.name in files:
            continue
        files[file.name] = file
        for name in file.dependency:
            more = ask(channel, file_by_filename=name)
            pending += more.file_descriptor_response.file_descriptor_proto
    added: set[str] = set()

    def add(file: descriptor_pb2.FileDescriptorProto) -> None:
        if file.name not in added:
            added.add(file.name)
            for name in file.dependency:
                add(files[name])
            pool.Add(file)

    for file in files.values():
        add(file)
    return pool


def call(
    channel: grpc.Channel,
    pool: descriptor_pool.DescriptorPool,
    method: str,
    *messages: dict[str, Any],
) -> dict[str, Any]:
    """Call a method from JSON to JSON, knowing nothing but what was described."""
    service, _, name = method.rpartition("/")
    about = pool.FindServiceByName(service).FindMethodByName(name)
    request = message_factory.GetMessageClass(about.input_type)
    response = message_factory.GetMessageClass(about.output_type)
    requests = [ParseDict(message, request()) for message in messages]
    path = f"/{method}"
    if about.client_streaming:
        streaming = channel.stream_unary(path, request.SerializeToString, response.FromString)
        answer = streaming(iter(requests), timeout=30)
    else:
        unary = channel.unary_unary(path, request.SerializeToString, response.FromString)
        answer = unary(requests[0], timeout=30)
    return dict(MessageToDict(answer, preserving_proto_field_name=True))


def test_the_services_are_listed(channel: grpc.Channel) -> None:
    answer = ask(channel, list_services="")
    names = {service.name for service in answer.list_services_response.service}
    assert {"headrace.v1.MetricService", "headrace.v1.RunService"} <= names


def test_points_are_stored_by_what_is_described(channel: grpc.Channel) -> None:
    run_id = uuid.uuid4().hex
    metrics = described(channel, "headrace.v1.MetricService")
    call(
        channel,
        described(channel, "headrace.v1.RunService"),
        "headrace.v1.RunService/CreateRun",
        {"run_id": run_id},
    )
    ids = {"writer_id": uuid.uuid4().hex, "incarnation": uuid.uuid4().hex}
    summary = call(
        channel,
        metrics,
        "headrace.v1.MetricService/ImportMetrics",
        {"open": {"run_id": run_id, **ids}},
        {"keys": {"keys": [{"index": 0, "key": "loss"}]}},
        {
            "batch": {
                "first_sequence": 1,
                "record_count": 1,
                "series_index": [0],
                "step": [0],
                "time_unix_us": [1767225600000000],
                "value": [0.5],
            }
        },
        {"finish": {"last_sequence": 1}},
    )
    assert summary["committed_sequence"] == "1"
    listed = call(channel, metrics, "headrace.v1.MetricService/ListSeries", {"run_id": run_id})
    assert [series["key"] for series in listed["series"]] == ["loss"]
