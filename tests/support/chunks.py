"""Writes runs and chunk rows by plain SQL, as an independent oracle of the format.

Shares no code with the gateway: what `gateway.ingest` writes and what this
writes must read alike. One `StoredRun` stands for one run; each `commit` is one
flush of one writer, in one transaction, with its summaries and watermark.
"""

import math
import struct
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import asyncpg

SUMMARY_BLOCK_SERIES = 24
INT32_MAX = 2**31 - 1

PointRow = tuple[str, int, int, float]
"""A point to store: (key, step, time in µs, value)."""


@dataclass(slots=True, kw_only=True)
class StoredWriter:
    """A writer's row, and what its summaries must say."""

    writer_no: int
    rank: int
    attempt: int
    sequence: int = 0
    points: dict[int, list[tuple[int, int, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )


def number_order(value: float) -> tuple[bool, float]:
    """Order values with NaN below every number."""
    return (not math.isnan(value), 0.0 if math.isnan(value) else value)


def point_order(point: tuple[int, int, float]) -> tuple[int, int, bool, float]:
    """Order (step, time, value) as the contract does."""
    step, time_us, value = point
    return (step, time_us, *number_order(value))


def extremes(values: Iterable[float]) -> tuple[float, float]:
    """Return the least and greatest value, NaN ignored; NaN when all are."""
    numbers = [value for value in values if not math.isnan(value)]
    return (min(numbers), max(numbers)) if numbers else (math.nan, math.nan)


class StoredRun:
    """One run in the database, written to directly."""

    def __init__(self, connection: asyncpg.Connection, run_id: uuid.UUID) -> None:
        self.connection = connection
        self.run_id = run_id
        self.series: dict[tuple[str, int], int] = {}

    @classmethod
    async def create(
        cls, connection: asyncpg.Connection, *, step_policy: int = 1, workspace_id: int = 0
    ) -> "StoredRun":
        run_id = uuid.uuid4()
        await connection.execute(
            "INSERT INTO runs (run_id, workspace_id, experiment_id, name, step_policy)"
            " VALUES ($1, $2, 0, 'a run', $3)",
            run_id,
            workspace_id,
            step_policy,
        )
        return cls(connection, run_id)

    async def attempt(
        self, attempt: int, resume_step: int | None = None, exempt_keys: Sequence[str] = ()
    ) -> None:
        await self.connection.execute(
            "INSERT INTO attempts (run_id, attempt, resume_step, resume_exempt_keys)"
            " VALUES ($1, $2, $3, $4) ON CONFLICT (run_id, attempt) DO UPDATE"
            " SET resume_step = EXCLUDED.resume_step,"
            " resume_exempt_keys = EXCLUDED.resume_exempt_keys",
            self.run_id,
            attempt,
            resume_step,
            list(exempt_keys),
        )

    async def writer(self, *, rank: int = 0, attempt: int = 1) -> StoredWriter:
        await self.connection.execute(
            "INSERT INTO attempts (run_id, attempt) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            self.run_id,
            attempt,
        )
        writer_no = await self.connection.fetchval(
            "INSERT INTO writers (run_id, writer_id, incarnation, rank, attempt)"
            " VALUES ($1, $2, $2, $3, $4) RETURNING writer_no",
            self.run_id,
            uuid.uuid4(),
            rank,
            attempt,
        )
        return StoredWriter(writer_no=writer_no, rank=rank, attempt=attempt)

    async def commit(
        self, writer: StoredWriter, points: Iterable[PointRow], *, chunk_points: int = 100
    ) -> None:
        """Store one flush: chunks, summaries, counters and watermark together."""
        by_key: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
        for key, step, time_us, value in points:
            by_key[key].append((step, time_us, value))
        async with self.connection.transaction():
            writer.sequence += 1
            for key in sorted(by_key):
                series_id = await self._series_id(key, writer.rank)
                rows = sorted(by_key[key], key=lambda point: point[0])  # stable, by step only
                writer.points[series_id].extend(rows)
                await self._insert_chunks(writer, series_id, rows, chunk_points)
            await self._update_writer(writer)

    async def _series_id(self, key: str, rank: int) -> int:
        if (key, rank) not in self.series:
            self.series[key, rank] = await self.connection.fetchval(
                "WITH made AS (INSERT INTO series (run_id, rank, key) VALUES ($1, $2, $3)"
                " ON CONFLICT (run_id, key, rank) DO NOTHING RETURNING series_id)"
                " SELECT series_id FROM made UNION ALL SELECT series_id FROM series"
                " WHERE run_id = $1 AND rank = $2 AND key = $3",
                self.run_id,
                rank,
                key,
            )
        return self.series[key, rank]

    async def _insert_chunks(
        self,
        writer: StoredWriter,
        series_id: int,
        rows: list[tuple[int, int, float]],
        chunk_points: int,
    ) -> None:
        chunk: list[tuple[int, int, float]] = []
        chunks = []
        for row in rows:
            if chunk and (
                len(chunk) == chunk_points
                or row[0] - chunk[0][0] > INT32_MAX
                or abs(row[1] - chunk[0][1]) > INT32_MAX
            ):
                chunks.append(chunk)
                chunk = []
            chunk.append(row)
        chunks.append(chunk)
        await self.connection.executemany(
            "INSERT INTO loose_chunks (run_id, series_id, writer_no, last_sequence, first_step,"
            " last_step, first_time, min_value, max_value, attempt, step_offsets, time_offsets,"
            " point_values) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            [
                (
                    self.run_id,
                    series_id,
                    writer.writer_no,
                    writer.sequence,
                    chunk[0][0],
                    chunk[-1][0],
                    chunk[0][1],
                    *extremes(value for _, _, value in chunk),
                    writer.attempt,
                    step_offsets([step for step, _, _ in chunk]),
                    packed("i", [time_us - chunk[0][1] for _, time_us, _ in chunk]),
                    packed("d", [value for _, _, value in chunk]),
                )
                for chunk in chunks
            ],
        )

    async def _update_writer(self, writer: StoredWriter) -> None:
        await self.connection.execute(
            "UPDATE writers SET committed_sequence = $3, accepted_points = $4"
            " WHERE run_id = $1 AND writer_no = $2",
            self.run_id,
            writer.writer_no,
            writer.sequence,
            sum(map(len, writer.points.values())),
        )
        ids = list(writer.points)
        for block, first in enumerate(range(0, len(ids), SUMMARY_BLOCK_SERIES)):
            chosen = ids[first : first + SUMMARY_BLOCK_SERIES]
            lasts = [max(writer.points[series_id], key=point_order) for series_id in chosen]
            spans = [extremes(value for *_, value in writer.points[i]) for i in chosen]
            await self.connection.execute(
                "INSERT INTO writer_summaries VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
                " ON CONFLICT (run_id, writer_no, block) DO UPDATE SET"
                " series_ids = EXCLUDED.series_ids, point_counts = EXCLUDED.point_counts,"
                " last_steps = EXCLUDED.last_steps, last_times = EXCLUDED.last_times,"
                " last_values = EXCLUDED.last_values, min_values = EXCLUDED.min_values,"
                " max_values = EXCLUDED.max_values",
                self.run_id,
                writer.writer_no,
                block,
                chosen,
                [len(writer.points[series_id]) for series_id in chosen],
                [last[0] for last in lasts],
                [last[1] for last in lasts],
                [last[2] for last in lasts],
                [span[0] for span in spans],
                [span[1] for span in spans],
            )


def step_offsets(steps: list[int]) -> bytes | None:
    """Return the stored form: None for an arithmetic progression."""
    if len({after - before for before, after in pairwise(steps)}) <= 1:
        return None
    return packed("i", [step - steps[0] for step in steps])


def packed(form: str, items: Sequence[float]) -> bytes:
    """Return the stored form of a column: big-endian, end to end."""
    return struct.pack(f">{len(items)}{form}", *items)
