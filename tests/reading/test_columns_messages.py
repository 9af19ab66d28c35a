"""Messages assembled by hand are the bytes that the generated class would write."""

import numpy as np
import pytest
from headrace.v1 import metric_service_pb2 as pb

from gateway.domain.limits import READ_POINTS_PER_MESSAGE_MAX
from gateway.domain.policies import Points
from gateway.domain.reads import SeriesPart
from gateway.rpc.metric_read import columns_message


def a_part(*, key: str, rank: int, attempt: int, count: int) -> SeriesPart:
    chance = np.random.default_rng(1)
    value = chance.normal(size=count)
    value[::7] = np.nan
    points = Points(
        step=chance.integers(-(2**62), 2**62, count),
        time_us=chance.integers(0, 2**57, count),
        value=value,
        attempt=np.full(count, attempt, np.int32),
        rank=np.full(count, rank, np.int32),
    )
    return SeriesPart(key=key, rank=rank, attempt=attempt, points=points)


@pytest.mark.parametrize("count", [1, 5, 15, 16, 17, 2_000])
@pytest.mark.parametrize(
    ("key", "rank", "attempt"),
    [("a", 0, 0), ("é" * 125, 1, 1), ("k" * 250, -1, 0), ("x", 2**31 - 1, 300)],
)
def test_the_bytes_equal_those_of_the_generated_class(
    key: str, rank: int, attempt: int, count: int
) -> None:
    part = a_part(key=key, rank=rank, attempt=attempt, count=count)
    expected = pb.ReadMetricsResponse(
        columns=pb.SeriesColumns(
            key=key,
            rank=rank,
            step=part.points.step.tolist(),
            time_unix_us=part.points.time_us.tolist(),
            value=part.points.value.tolist(),
            attempt=attempt,
        )
    )
    assert columns_message(part, 0) == expected.SerializeToString()


def test_a_message_holds_at_most_the_documented_number_of_points() -> None:
    part = a_part(key="a", rank=0, attempt=0, count=READ_POINTS_PER_MESSAGE_MAX + 3)
    first = pb.ReadMetricsResponse.FromString(columns_message(part, 0)).columns
    rest = pb.ReadMetricsResponse.FromString(
        columns_message(part, READ_POINTS_PER_MESSAGE_MAX)
    ).columns
    assert (len(first.step), len(rest.step)) == (READ_POINTS_PER_MESSAGE_MAX, 3)
    assert [*first.step, *rest.step] == part.points.step.tolist()
