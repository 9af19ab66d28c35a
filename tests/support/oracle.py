"""What must be stored, and what is: acknowledged ⊆ stored ⊆ sent, each point once.

Reads chunk rows with its own SQL and its own connection, through no code of
the gateway, and compares whole columns. `ConnectionWatch` counts the
gateway's backends as PostgreSQL sees them.
"""

import asyncio
import contextlib
import uuid
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import asyncpg
import numpy as np
import numpy.typing as npt

from benchmarks.plan import Columns, Plan

_CHUNKS: Final = """
SELECT
    series_id, writer_no, first_step, last_step, first_time, step_offsets, time_offsets,
    point_values
FROM metric_chunks
WHERE run_id = $1
"""
_POINT: Final = np.dtype(
    [
        ("series_id", np.int64),
        ("writer_no", np.int64),
        ("step", np.int64),
        ("time_us", np.int64),
        ("value", np.float64),
    ]
)
_DEAD: Final = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterRow:
    """One writer as stored."""

    writer_no: int
    rank: int
    committed_sequence: int
    accepted_points: int
    rejected_points: int
    late_points: int
    repeated_points: int
    finished: bool


class Oracle:
    """Reads one database directly. Make it with `async with Oracle(dsn)`."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: Any = None

    async def __aenter__(self) -> Self:
        self._connection = await asyncpg.connect(self._dsn)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._connection.close()

    async def fetch(self, statement: str, *arguments: object) -> list[Any]:
        """Run any query."""
        rows: list[Any] = await self._connection.fetch(statement, *arguments)
        return rows

    async def writer(self, run_id: str, writer_id: str) -> WriterRow | None:
        """Return the row of a writer, None when it never opened a stream."""
        rows = await self.fetch(
            "SELECT * FROM writers WHERE run_id = $1 AND writer_id = $2",
            uuid.UUID(run_id),
            uuid.UUID(writer_id),
        )
        if not rows:
            return None
        row = rows[0]
        return WriterRow(
            writer_no=row["writer_no"],
            rank=row["rank"],
            committed_sequence=row["committed_sequence"],
            accepted_points=row["accepted_points"],
            rejected_points=row["rejected_points"],
            late_points=row["late_points"],
            repeated_points=row["repeated_points"],
            finished=row["finished_at"] is not None,
        )

    async def points(self, run_id: str) -> "npt.NDArray[Any]":
        """Return every stored point of a run: series_id, writer_no, step, time_us, value."""
        chunks = [_points(row) for row in await self.fetch(_CHUNKS, uuid.UUID(run_id))]
        return np.concatenate(chunks) if chunks else np.empty(0, _POINT)

    async def series_ids(self, run_id: str, rank: int, plan: Plan) -> "npt.NDArray[np.int64]":
        """Return the series id of each series index of a plan; -1 where there is none."""
        rows = await self.fetch(
            "SELECT key, series_id FROM series WHERE run_id = $1 AND rank = $2",
            uuid.UUID(run_id),
            rank,
        )
        ids = {row["key"]: row["series_id"] for row in rows}
        keys = (plan.key(index) for index in range(plan.series))
        return np.array([ids.get(key, -1) for key in keys], dtype=np.int64)

    async def check_writer(
        self,
        plan: Plan,
        *,
        run_id: str,
        writer_id: str,
        sent: int,
        acknowledged: int,
        points: "npt.NDArray[Any] | None" = None,
    ) -> int:
        """Assert that the writer's stored points are those of records 1..watermark, once each.

        Args:
            sent: the greatest sequence ever sent.
            acknowledged: the greatest sequence ever acknowledged.
            points: `self.points(run_id)`, where the caller has it already.

        Returns:
            how many points are stored.
        """
        row = await self.writer(run_id, writer_id)
        name = f"writer {plan.stream} ({writer_id})"
        if row is None:
            assert acknowledged == 0, f"{name}: acknowledged {acknowledged}, but never opened"
            return 0
        watermark = row.committed_sequence
        assert acknowledged <= watermark, f"{name}: {acknowledged} acknowledged, {watermark} stored"
        assert watermark <= sent, f"{name}: {watermark} stored, {sent} sent"
        stored = await self.points(run_id) if points is None else points
        stored = stored[stored["writer_no"] == row.writer_no]
        expected = plan.columns(1, watermark)
        ids = await self.series_ids(run_id, row.rank, plan)
        assert_same_points(name, stored, expected, ids)
        counted = row.accepted_points + row.rejected_points
        assert counted == len(stored), f"{name}: {counted} counted, {len(stored)} stored"
        await self._check_summaries(name, run_id, row, stored)
        return len(stored)

    async def _check_summaries(
        self, name: str, run_id: str, row: WriterRow, stored: "npt.NDArray[Any]"
    ) -> None:
        """Assert that the writer's summaries are the fold of its stored points."""
        summaries = await self.fetch(
            "SELECT s.* FROM writer_summaries w, unnest(series_ids, point_counts, last_steps,"
            " last_values, min_values, max_values)"
            " AS s (series_id, point_count, last_step, last_value, min_value, max_value)"
            " WHERE w.run_id = $1 AND w.writer_no = $2",
            uuid.UUID(run_id),
            row.writer_no,
        )
        found = {summary["series_id"]: summary for summary in summaries}
        order = np.argsort(stored["series_id"], kind="stable")
        for group in np.split(
            stored[order], np.flatnonzero(np.diff(stored["series_id"][order])) + 1
        ):
            if not len(group):
                continue
            series_id = int(group["series_id"][0])
            summary = found[series_id]
            nan_lowest = np.where(np.isnan(group["value"]), -np.inf, group["value"])
            last = group[np.lexsort((nan_lowest, group["time_us"], group["step"]))[-1]]
            expected = (len(group), last["step"], last["value"])
            actual = (summary["point_count"], summary["last_step"], summary["last_value"])
            np.testing.assert_equal(actual, expected, f"{name}: summary of series {series_id}")
            numbers = group["value"][~np.isnan(group["value"])]
            if len(numbers):
                extremes = (summary["min_value"], summary["max_value"])
                assert extremes == (numbers.min(), numbers.max()), f"{name}: {series_id}"


def _points(chunk: Any) -> "npt.NDArray[Any]":
    """Return the points of one row of metric_chunks."""
    value = np.frombuffer(chunk["point_values"], ">f8")
    time_offset = np.frombuffer(chunk["time_offsets"], ">i4")
    count = len(value)
    assert count == len(time_offset) > 0
    points = np.empty(count, _POINT)
    points["series_id"], points["writer_no"] = chunk["series_id"], chunk["writer_no"]
    if chunk["step_offsets"] is not None:
        points["step"] = np.frombuffer(chunk["step_offsets"], ">i4")
    else:
        span = chunk["last_step"] - chunk["first_step"]
        assert span % max(count - 1, 1) == 0
        points["step"] = np.arange(count) * (span // max(count - 1, 1))
    points["step"] += chunk["first_step"]
    assert points["step"][-1] == chunk["last_step"]
    points["time_us"] = chunk["first_time"] + time_offset.astype(np.int64)
    points["value"] = value
    return points


def assert_same_points(
    name: str, stored: "npt.NDArray[Any]", expected: Columns, series_ids: "npt.NDArray[np.int64]"
) -> None:
    """Assert equality as multisets, values bit for bit."""
    columns = (
        series_ids[expected.series_index] if len(expected) else series_ids[:0],
        expected.step,
        expected.time_us,
        expected.value.view(np.int64),
    )
    found = (
        stored["series_id"].astype(np.int64),
        stored["step"].astype(np.int64),
        stored["time_us"].astype(np.int64),
        stored["value"].astype(np.float64).view(np.int64),
    )
    if len(columns[0]) != len(found[0]):
        twice = len(found[0]) - len(np.unique(np.stack(found), axis=1).T)
        raise AssertionError(
            f"{name}: {len(columns[0])} points expected, {len(found[0])} stored"
            f" ({twice} of them more than once)"
        )
    expected_order, found_order = np.lexsort(columns), np.lexsort(found)
    for column, other, title in zip(
        columns, found, ("series", "step", "time", "value"), strict=True
    ):
        different = np.flatnonzero(column[expected_order] != other[found_order])
        assert not len(different), (
            f"{name}: {len(different)} points differ in {title}, first: expected "
            f"{[int(c[expected_order][different[0]]) for c in columns]}, stored "
            f"{[int(c[found_order][different[0]]) for c in found]}"
        )


class ConnectionWatch:
    """Polls pg_stat_activity over a connection of its own.

    Attributes:
        connections_max: the most client backends of gateways ever seen at once.
        backends_at_max: what they were: name, pid, state and last statement.
        polls: how often it looked.
    """

    def __init__(self, dsn: str, *, interval_s: float = 0.01) -> None:
        self._dsn = dsn
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self.connections_max = 0
        self.backends_at_max: list[str] = []
        self.polls = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while True:
            # A killed server takes this connection along: it comes back with it.
            with contextlib.suppress(*_DEAD, asyncpg.PostgresError):
                await self._poll()
            await asyncio.sleep(0.05)

    async def _poll(self) -> None:
        connection = await asyncpg.connect(self._dsn, timeout=5)
        try:
            while True:
                backends = await gateway_backends(connection)
                if len(backends) > self.connections_max:
                    self.connections_max, self.backends_at_max = len(backends), backends
                self.polls += 1
                await asyncio.sleep(self._interval_s)
        finally:
            connection.terminate()


async def gateway_backends(connection: Any) -> list[str]:
    """Describe the backends of gateways in this connection's database."""
    rows = await connection.fetch(
        "SELECT concat_ws(' ', application_name, pid, state, left(query, 60)) AS backend"
        " FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND application_name LIKE 'headrace%' AND datname = current_database()"
    )
    return [row["backend"] for row in rows]
