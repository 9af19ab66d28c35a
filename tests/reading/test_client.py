"""`headrace.Client` against a real gateway process."""

import math
import sys
import threading
import uuid
from types import SimpleNamespace
from typing import Any

import asyncpg
import headrace
import numpy as np
import pytest
from headrace.columns import Columns, from_message, join
from headrace.v1 import metric_service_pb2 as pb

from tests.support.chunks import StoredRun
from tests.support.gateway_process import GatewayProcess


@pytest.fixture
def gateway(mortal_gateway: GatewayProcess) -> GatewayProcess:
    """The module's gateway: every test has runs of its own, and may restart it."""
    return mortal_gateway


@pytest.fixture
def database_dsn(gateway: GatewayProcess) -> str:
    """Its database: `connection` is to this one."""
    return gateway.dsn


def in_thread(function: Any) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


async def a_run(connection: asyncpg.Connection) -> StoredRun:
    run = await StoredRun.create(connection)
    for rank in (0, 1):
        writer = await run.writer(rank=rank)
        points = [("loss", step, 1_000_000 * step, rank + step / 2) for step in range(100)]
        await run.commit(writer, [*points, ("epoch/acc", 1, 5, math.nan)])
    return run


async def test_runs_series_and_columns_are_read_back(
    connection: asyncpg.Connection, gateway: GatewayProcess
) -> None:
    run = await a_run(connection)
    with headrace.Client(gateway.address) as client:
        info = client.run(run.run_id.hex)
        assert (info.run_id, info.step_policy, info.state) == (run.run_id.hex, "last", "RUNNING")
        assert [attempt.attempt for attempt in info.attempts] == [1]

        series = client.series(run.run_id.hex, prefix="lo")
        assert [(item.key, item.rank, item.point_count) for item in series] == [
            ("loss", 0, 100),
            ("loss", 1, 100),
        ]
        assert (series[1].last_step, series[1].last_value) == (99, 50.5)
        assert series[1].last_time == np.datetime64(99, "s")

        columns = client.read(run.run_id.hex, keys=["loss"], ranks=[1], first_step=10)
        loss = columns["loss"]
        assert (str(loss.step.dtype), str(loss.value.dtype)) == ("int64", "float64")
        assert loss.time.dtype == np.dtype("datetime64[us]")
        assert loss.step.tolist() == list(range(10, 100))
        assert loss.value.tolist() == [1 + step / 2 for step in range(10, 100)]
        assert loss.time[0] == np.datetime64(10, "s")

        everything = client.read(run.run_id.hex)
        assert [(item.key, item.rank) for item in everything] == [
            ("epoch/acc", 0),
            ("epoch/acc", 1),
            ("loss", 0),
            ("loss", 1),
        ]
        assert math.isnan(everything["epoch/acc", 1].value[0])
        assert len(everything.step) == 202

        mean = client.read(run.run_id.hex, "loss", aggregate="mean")["loss"]
        assert mean.rank == -1
        assert mean.value.tolist() == [0.5 + step / 2 for step in range(100)]
        assert len(client.read(run.run_id.hex, "loss", max_points=8)["loss", 0]) <= 8
        assert len(client.read(run.run_id.hex, "absent")) == 0


async def test_failures_carry_the_reason_and_what_it_names(gateway: GatewayProcess) -> None:
    with headrace.Client(gateway.address) as client:
        with pytest.raises(headrace.GatewayError, match="RUN_NOT_FOUND") as absent:
            client.run(uuid.uuid4().hex)
        assert absent.value.reason == "RUN_NOT_FOUND"
        with pytest.raises(headrace.GatewayError) as refused:
            client.read(uuid.uuid4().hex, max_points=2)
        assert refused.value.reason == "FIELD_INVALID"
        assert refused.value.metadata["field"] == "max_points"
        assert refused.value.metadata["value"] == "2"


async def test_a_gateway_that_stays_away_is_an_error_after_the_patience() -> None:
    with (
        headrace.Client("127.0.0.1:1", patience_s=0.3) as client,
        pytest.raises(headrace.GatewayError) as away,
    ):
        client.run(uuid.uuid4().hex)
    assert away.value.reason == "UNAVAILABLE"


async def test_a_call_waits_for_a_gateway_that_restarts(
    connection: asyncpg.Connection, gateway: GatewayProcess
) -> None:
    run = await a_run(connection)
    with headrace.Client(gateway.address, patience_s=60) as client:
        gateway.kill()
        restart = in_thread(gateway.restart)
        assert len(client.read(run.run_id.hex, "loss", ranks=[0])["loss"]) == 100
        restart.join(60)


async def test_following_goes_on_as_a_new_generation_after_a_restart(
    connection: asyncpg.Connection, gateway: GatewayProcess
) -> None:
    run = await StoredRun.create(connection)
    writer = await run.writer()
    await run.commit(writer, [("loss", 0, 0, 0.0)])
    seen: dict[int, list[int]] = {1: [], 2: []}
    with headrace.Client(gateway.address, patience_s=60) as client:
        updates = client.follow(run.run_id.hex, "loss")
        for update in updates:
            if update.columns is not None:
                assert update.columns.attempt == 1
                seen[update.generation] += update.columns.step.tolist()
            elif update.generation == 1:
                await run.commit(writer, [("loss", 1, 1, 1.0)])
            else:
                await run.commit(writer, [("loss", 2, 2, 2.0)])
            if seen == {1: [0, 1], 2: []}:
                gateway.restart()
            if seen[2] == [0, 1, 2]:
                break
        updates.close()  # type: ignore[attr-defined] # it is a generator
    assert seen == {1: [0, 1], 2: [0, 1, 2]}


def a_message(count: int) -> pb.SeriesColumns:
    return pb.SeriesColumns(
        key="k", rank=1, step=range(count), time_unix_us=range(count), value=[0.5] * count
    )


def test_columns_are_read_without_numpy_support_of_protobuf_too() -> None:
    message = a_message(3)
    # Fields of protobuf before 7.34: sequences without __array__.
    old = SimpleNamespace(
        key="k", rank=1, attempt=0, step=[0, 1, 2], time_unix_us=[0, 1, 2], value=[0.5] * 3
    )
    expected, actual = from_message(message), from_message(old)  # type: ignore[arg-type]
    for name in ("step", "time", "value"):
        column = getattr(actual, name)
        assert column.dtype == getattr(expected, name).dtype
        assert (column == getattr(expected, name)).all()


def test_messages_of_one_series_are_joined_and_others_are_not() -> None:
    other = pb.SeriesColumns(key="k", rank=2, step=[7], time_unix_us=[0], value=[1.0])
    columns = Columns(join([a_message(2), a_message(3), other]))
    assert [len(series) for series in columns] == [5, 1]
    with pytest.raises(KeyError, match="names 2 series"):
        columns["k"]
    with pytest.raises(KeyError):
        columns["absent"]
    assert columns["k", 2].step.tolist() == [7]


def test_data_frames_have_one_row_a_point() -> None:
    pandas = pytest.importorskip("pandas")
    other = pb.SeriesColumns(key="l", rank=2, step=[7], time_unix_us=[10**6], value=[1.0])
    frame = Columns(join([a_message(2), other])).to_pandas()
    assert list(frame.columns) == ["key", "rank", "step", "time", "value"]
    assert frame["key"].tolist() == ["k", "k", "l"]
    assert frame["time"].iloc[2] == pandas.Timestamp(1, unit="s")
    assert Columns([]).to_pandas().empty


def test_polars_frames_have_one_row_a_point() -> None:
    pytest.importorskip("polars")
    other = pb.SeriesColumns(key="l", rank=2, step=[7], time_unix_us=[10**6], value=[1.0])
    frame = Columns(join([a_message(2), other])).to_polars()
    assert frame.columns == ["key", "rank", "step", "time", "value"]
    assert frame["key"].to_list() == ["k", "k", "l"]
    assert Columns([]).to_polars().is_empty()


def test_a_missing_pandas_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pandas"):
        Columns([]).to_pandas()
