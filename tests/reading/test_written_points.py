"""What the gateway wrote through its own encoder is read back, policies and summaries included."""

import math
import random
import threading
import uuid
from collections.abc import Iterator

import grpc
import headrace
from headrace.v1 import metric_service_pb2 as pb
from headrace.v1 import run_service_pb2 as runs_pb
from headrace.v1.metric_service_pb2_grpc import MetricServiceStub
from headrace.v1.run_service_pb2_grpc import RunServiceStub

from tests.reading import naive
from tests.reading.naive import History, Stored
from tests.support.gateway_process import GatewayProcess

KEYS = [f"key{number}" for number in range(30)]  # more than one block of summaries


def messages(
    run_id: str,
    history: History,
    chance: random.Random,
    *,
    rank: int,
    attempt: int,
    batches: int = 12,
    points_max: int = 700,
) -> Iterator[pb.ImportMetricsRequest]:
    """Yield an import, and note its points in the history."""
    open_writer = pb.OpenWriter(
        run_id=run_id,
        writer_id=uuid.uuid4().hex,
        incarnation=uuid.uuid4().hex,
        rank=rank,
        attempt=attempt,
        resume_step=history.resume_steps[attempt],
        resume_exempt_keys=sorted(history.exempt_keys),
    )
    yield pb.ImportMetricsRequest(open=open_writer)
    keys = [pb.KeyDefinition(index=index, key=key) for index, key in enumerate(KEYS)]
    yield pb.ImportMetricsRequest(keys=pb.DefineKeys(keys=keys))
    for sequence in range(1, batches + 1):
        count = chance.randint(1, points_max)
        regular = chance.random() < 0.5
        batch = pb.MetricBatch(first_sequence=sequence, record_count=1)
        for number in range(count):
            index = 0 if regular else chance.randrange(len(KEYS))
            step = 1_000 * sequence + 2 * number if regular else chance.randint(-20, 5_000)
            value = math.nan if chance.random() < 0.1 else chance.gauss(0, 1)
            time_us = 1_700_000_000_000_000 + chance.randint(0, 10**10)
            batch.series_index.append(index)
            batch.step.append(step)
            batch.time_unix_us.append(time_us)
            batch.value.append(value)
            history.points.append(
                Stored(
                    key=KEYS[index],
                    rank=rank,
                    attempt=attempt,
                    step=step,
                    time_us=time_us,
                    value=value,
                )
            )
        yield pb.ImportMetricsRequest(batch=batch)
    yield pb.ImportMetricsRequest(finish=pb.FinishWriter(last_sequence=batches))


def test_points_written_through_the_gateway_are_read_and_followed_exactly(
    gateway: GatewayProcess,
) -> None:
    chance = random.Random(11)
    history = History(resume_steps={1: None, 2: 2_500}, exempt_keys={"key3"})
    run_id = uuid.uuid4().hex
    followed: list[float] = []
    expected_points: list[int] = []

    def write() -> None:
        with grpc.insecure_channel(gateway.address) as channel:
            stub = MetricServiceStub(channel)
            for attempt in (1, 2):
                for rank in (0, 1):
                    stub.ImportMetrics(
                        messages(run_id, history, chance, rank=rank, attempt=attempt)
                    )
            # Known before the last point is committed, so that the follower can stop at it.
            expected_points.append(len(history.points) + 1)
            last = messages(run_id, history, chance, rank=2, attempt=2, batches=1, points_max=1)
            stub.ImportMetrics(last)

    with grpc.insecure_channel(gateway.address) as channel:
        RunServiceStub(channel).CreateRun(runs_pb.CreateRunRequest(run_id=run_id))
    writer = threading.Thread(target=write, daemon=True)
    with headrace.Client(gateway.address) as client:
        for update in client.follow(run_id):
            if update.columns is None:
                writer.start()
                continue
            followed.extend(update.columns.value.tolist())
            if expected_points and len(followed) >= expected_points[0]:
                break
    writer.join(60)
    numbers = sorted(value for value in followed if not math.isnan(value))
    assert numbers == sorted(p.value for p in history.points if not math.isnan(p.value))

    with headrace.Client(gateway.address) as client:
        expected = naive.read(history, policy="LAST")
        actual = client.read(run_id)
        assert [(s.key, s.rank) for s in actual] == sorted({row[:2] for row in expected})
        assert actual.step.tolist() == [row[3] for row in expected]
        assert actual.time.astype("int64").tolist() == [row[4] for row in expected]
        values = [row[5] for row in expected]
        assert [repr(value) for value in actual.value.tolist()] == [repr(v) for v in values]

        summaries = naive.summaries(history)
        listed = {(s.key, s.rank): s for s in client.series(run_id)}
        assert listed.keys() == summaries.keys()
        for name, series in listed.items():
            summary = summaries[name]
            assert series.point_count == summary.point_count
            assert series.last_step == summary.last[0]
            assert repr(series.last_value) == repr(summary.last[2])
            assert (series.min_value, series.max_value) == (summary.min_value, summary.max_value)
