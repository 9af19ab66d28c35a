"""Reads through the service, and back from its bytes."""

from collections.abc import AsyncGenerator
from uuid import UUID

from headrace.v1 import metric_service_pb2 as pb

from gateway.rpc.metric_read import MetricReadService
from gateway.store.reading import MetricReading
from tests.reading.naive import Row


async def stream(
    reading: MetricReading, run_id: UUID, **fields: object
) -> AsyncGenerator[pb.ReadMetricsResponse, None]:
    """Yield the messages of a read as they come."""
    request = pb.ReadMetricsRequest(run_id=run_id.hex, **fields)  # type: ignore[arg-type]
    messages = MetricReadService(reading).read_metrics(request, None)
    try:
        async for data in messages:
            yield pb.ReadMetricsResponse.FromString(data)
    finally:
        await messages.aclose()  # type: ignore[attr-defined] # it is a generator


async def read_metrics(
    reading: MetricReading, run_id: UUID, **fields: object
) -> list[pb.SeriesColumns]:
    """Return the columns of a read that ends."""
    return [message.columns async for message in stream(reading, run_id, **fields)]


def rows_of(messages: list[pb.SeriesColumns]) -> list[Row]:
    """Return every point of some columns."""
    return [
        (columns.key, columns.rank, columns.attempt, step, time_us, value)
        for columns in messages
        for step, time_us, value in zip(
            columns.step, columns.time_unix_us, columns.value, strict=True
        )
    ]
