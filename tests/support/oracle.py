"""What must be stored, and what is: acknowledged ⊆ stored ⊆ sent, each point once.

Reads chunk rows with its own SQL and its own connection, through no code of
the gateway, and compares whole columns. `ConnectionWatch` counts the
gateway's backends as PostgreSQL sees them.
"""

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Sequence
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
Points = npt.NDArray[Any]
"""Of dtype _POINT."""
_POINT: Final = np.dtype(
    [
        ("series_id", np.int64),
        ("writer_no", np.int64),
        ("step", np.int64),
        ("time_us", np.int64),
        ("value", np.float64),
    ]
)
DYING: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
"""What a connection raises whose server is on its way down or up."""


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


@dataclass(slots=True, kw_only=True)
class Audit:
    """What an oracle has counted.

    Attributes:
        points: stored.
        lost: not stored, of those that must be.
        doubled: stored again, of those that are stored.
    """

    points: int = 0
    lost: int = 0
    doubled: int = 0


class Oracle:
    """Reads one database directly. Make it with `async with Oracle(dsn)`.

    Attributes:
        audit: sums over everything that was checked.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: Any = None
        self.audit = Audit()

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

    async def writers(self, run_id: str) -> dict[str, WriterRow]:
        """Return the rows of a run's writers by writer id."""
        rows = await self.fetch("SELECT * FROM writers WHERE run_id = $1", uuid.UUID(run_id))
        return {
            row["writer_id"].hex: WriterRow(
                writer_no=row["writer_no"],
                rank=row["rank"],
                committed_sequence=row["committed_sequence"],
                accepted_points=row["accepted_points"],
                rejected_points=row["rejected_points"],
                late_points=row["late_points"],
                repeated_points=row["repeated_points"],
                finished=row["finished_at"] is not None,
            )
            for row in rows
        }

    async def writer(self, run_id: str, writer_id: str) -> WriterRow | None:
        """Return the row of a writer, None when it never opened a stream."""
        return (await self.writers(run_id)).get(uuid.UUID(writer_id).hex)

    async def points(self, run_id: str) -> Points:
        """Return every stored point of a run: series_id, writer_no, step, time_us, value."""
        chunks = [_points(row) for row in await self.fetch(_CHUNKS, uuid.UUID(run_id))]
        return np.concatenate(chunks) if chunks else np.empty(0, _POINT)

    async def check_writer(
        self, plan: Plan, *, run_id: str, writer_id: str, sent: int, acknowledged: int
    ) -> int:
        """Assert that the writer's stored points are those of records 1..watermark, once each.

        Nothing that a plan sends may be rejected.

        Args:
            sent: the greatest sequence ever sent.
            acknowledged: the greatest sequence ever acknowledged.

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
        keys = [plan.key(index) for index in range(plan.series)]
        expected = plan.columns(1, watermark)
        return await self.check_points(name, run_id, row, expected, keys=keys)

    async def check_points(
        self, name: str, run_id: str, row: WriterRow, expected: Columns, *, keys: Sequence[str]
    ) -> int:
        """Assert that a writer has the expected points, once each, and counted and summed up so.

        Args:
            name: of the writer, for people.
            run_id, row: the writer.
            expected: all its points.
            keys: the key of each series index of `expected`.

        Returns:
            how many points are stored.
        """
        stored = await self.points(run_id)
        stored = stored[stored["writer_no"] == row.writer_no]
        found = await self.fetch(
            "SELECT key, series_id FROM series WHERE run_id = $1 AND rank = $2",
            uuid.UUID(run_id),
            row.rank,
        )
        ids = {series["key"]: series["series_id"] for series in found}
        series_ids = np.array([ids.get(key, -1) for key in keys], np.int64)
        self._compare(name, stored, expected, series_ids)
        counters = (row.accepted_points, row.rejected_points)
        assert counters == (len(stored), 0), (
            f"{name}: {len(stored)} points stored, accepted and rejected {counters}"
        )
        await self._check_summaries(name, run_id, row, stored)
        return len(stored)

    def _compare(
        self, name: str, stored: Points, expected: Columns, series_ids: "npt.NDArray[np.int64]"
    ) -> None:
        """Assert equality as multisets, values bit for bit; count what differs."""
        ids = series_ids[expected.series_index] if len(expected) else series_ids[:0]
        wanted = _rows(ids, expected.step, expected.time_us, expected.value)
        found = _rows(stored["series_id"], stored["step"], stored["time_us"], stored["value"])
        self.audit.points += len(found)
        if np.array_equal(wanted, found):
            return
        rows, places = np.unique(np.concatenate((wanted, found)), axis=0, return_inverse=True)
        places = places.reshape(-1)
        times_wanted = np.bincount(places[: len(wanted)], minlength=len(rows))
        times_found = np.bincount(places[len(wanted) :], minlength=len(rows))
        lost = int((times_wanted - times_found).clip(0).sum())
        doubled = int((times_found - times_wanted.clip(1)).clip(0).sum())
        self.audit.lost += lost
        self.audit.doubled += doubled
        raise AssertionError(
            f"{name}: {lost} points lost, {doubled} doubled,"
            f" {int(times_found[times_wanted == 0].sum())} never sent; the first of them"
            f" (series, step, time, bits of the value):"
            f" {rows[times_wanted != times_found][0].tolist()}"
        )

    async def _check_summaries(
        self, name: str, run_id: str, row: WriterRow, stored: Points
    ) -> None:
        """Assert that the writer's summaries are the fold of its stored points, and no more."""
        summaries = await self.fetch(
            "SELECT s.* FROM writer_summaries w, unnest(series_ids, point_counts, last_steps,"
            " last_values, min_values, max_values)"
            " AS s (series_id, point_count, last_step, last_value, min_value, max_value)"
            " WHERE w.run_id = $1 AND w.writer_no = $2",
            uuid.UUID(run_id),
            row.writer_no,
        )
        found = {summary["series_id"]: summary for summary in summaries}
        summed_up = sorted(summary["series_id"] for summary in summaries)
        assert summed_up == np.unique(stored["series_id"]).tolist(), (
            f"{name}: summaries of series {summed_up}"
        )
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
            extremes = (summary["min_value"], summary["max_value"])
            if len(numbers):
                assert extremes == (numbers.min(), numbers.max()), f"{name}: {series_id}"
            else:
                assert np.isnan(extremes).all(), f"{name}: {series_id}"


def _points(chunk: Any) -> Points:
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


def _rows(
    series_id: npt.ArrayLike,
    step: npt.ArrayLike,
    time_us: npt.ArrayLike,
    value: "npt.NDArray[np.float64]",
) -> "npt.NDArray[np.int64]":
    """Return points as rows of four integers, sorted; a value as its bits."""
    bits = np.ascontiguousarray(value).view(np.int64)
    columns = np.stack((np.asarray(series_id, np.int64), step, time_us, bits))
    return columns[:, np.lexsort(columns)].T


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One client backend of a gateway, as PostgreSQL shows it.

    Attributes:
        process: the gateway process it serves, by its application name: `headrace-gateway/0`.
        pid: its own.
        started_s: when it started; seconds since 1970.
        activity: its state and the beginning of its last statement.
    """

    process: str
    pid: int
    started_s: float
    activity: str


class ConnectionWatch:
    """Polls pg_stat_activity over a connection of its own.

    Attributes:
        connections_max: the most backends that one gateway process ever had at once.
        backends_at_max: what they were.
        polls: how often it looked.
    """

    def __init__(self, dsn: str, *, interval_s: float = 0.01) -> None:
        self._dsn = dsn
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self._since_s: dict[str, float] = {}
        self.connections_max = 0
        self.backends_at_max: list[Backend] = []
        self.polls = 0

    def replaced(self, process: str) -> None:
        """Note that the gateway process of this name is dead: later backends are the next one's.

        The dead one's backends may still be there for a moment, and count no more.
        """
        self._since_s[process] = time.time()

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
        if not self._task.cancelled():
            self._task.result()  # it has not watched until now: that must not pass for a good sign

    async def _watch(self) -> None:
        while True:
            # A killed server takes this connection along: it comes back with it.
            with contextlib.suppress(*DYING):
                await self._poll()
            await asyncio.sleep(0.05)

    async def _poll(self) -> None:
        connection = await asyncpg.connect(self._dsn, timeout=5)
        try:
            while True:
                self._count(await gateway_backends(connection))
                await asyncio.sleep(self._interval_s)
        finally:
            connection.terminate()

    def _count(self, backends: Sequence[Backend]) -> None:
        self.polls += 1
        alive = [one for one in backends if one.started_s >= self._since_s.get(one.process, 0.0)]
        for process, count in Counter(one.process for one in alive).items():
            if count > self.connections_max:
                self.connections_max = count
                self.backends_at_max = [one for one in alive if one.process == process]


async def gateway_backends(connection: Any) -> list[Backend]:
    """Return the backends of gateways in this connection's database, the oldest first."""
    rows = await connection.fetch(
        "SELECT application_name AS process, pid,"
        " extract(epoch FROM backend_start)::float8 AS started_s,"
        " concat_ws(' ', state, left(query, 60)) AS activity"
        " FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND application_name LIKE 'headrace%' AND datname = current_database()"
        " ORDER BY backend_start"
    )
    return [Backend(**row) for row in rows]
