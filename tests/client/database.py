"""Reads what the gateway stored, straight from PostgreSQL."""

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import asyncpg


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What is stored of one run.

    Attributes:
        state: a RunState number; 0 when the run does not exist.
        points: (key, rank, attempt, step, value), sorted.
        writers: writers that opened a stream.
        finished_writers: of them, those that finished.
    """

    state: int
    points: list[tuple[str, int, int, int, float]]
    writers: int
    finished_writers: int

    def of(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of one key, sorted."""
        return sorted((step, value) for name, _, _, step, value in self.points if name == key)


def fetch(dsn: str, statement: str, *arguments: object) -> list[Any]:
    """Runs a query on a connection of its own."""

    async def run() -> list[Any]:
        connection = await asyncpg.connect(dsn)
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as executor:  # pytest may have a loop in this thread
        return executor.submit(asyncio.run, run()).result()


def stored(dsn: str, run_id: str) -> Stored:
    """What is stored of a run now: its points at least as new as its writers and state."""
    identifier = uuid.UUID(run_id)
    states = fetch(dsn, "SELECT state FROM runs WHERE run_id = $1", identifier)
    (writers,) = fetch(
        dsn,
        "SELECT count(*) AS all, count(finished_at) AS finished FROM writers WHERE run_id = $1",
        identifier,
    )
    points = fetch(
        dsn,
        "SELECT key, rank, attempt, step, value FROM metric_points_raw WHERE run_id = $1",
        identifier,
    )
    return Stored(
        state=states[0]["state"] if states else 0,
        points=sorted(tuple(row) for row in points),
        writers=writers["all"],
        finished_writers=writers["finished"],
    )


def stored_when(
    dsn: str, run_id: str, condition: Callable[[Stored], bool], *, deadline_s: float = 45.0
) -> Stored:
    """Waits until the stored state of a run meets a condition.

    Raises:
        AssertionError: it did not in time.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        now = stored(dsn, run_id)
        if condition(now):
            return now
        assert time.monotonic() < deadline, (
            f"after {deadline_s} s: state {now.state}, {len(now.points)} points, "
            f"{now.finished_writers} of {now.writers} writers finished"
        )
        time.sleep(0.05)
