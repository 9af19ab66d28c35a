"""The audit: every point that was logged is stored, once, and nothing else is."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from examples.demo.jobs import Trainer
from examples.demo.servers import CONNECTIONS_BUDGET, Observer

STORED = """
    SELECT w.run_id, w.rank, w.attempt, sum(length(c.point_values) / 8)::bigint AS points
    FROM writers w
    JOIN metric_chunks c ON c.run_id = w.run_id AND c.writer_no = w.writer_no
    GROUP BY w.run_id, w.rank, w.attempt
"""

# The script logs each key once a step, so that equal (series, attempt, step)
# can only be one point stored twice.
DISTINCT = """
    SELECT count(*), count(DISTINCT (series_id, attempt, step))
    FROM metric_points_raw WHERE run_id = ANY($1)
"""

COUNTED = """
    SELECT coalesce(sum(accepted_points), 0)::bigint AS accepted,
           coalesce(sum(rejected_points), 0)::bigint AS rejected,
           coalesce(sum(lost_records), 0)::bigint AS lost
    FROM writers
"""

UNENDED = "SELECT count(*) FROM runs WHERE state <> 2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the audit: a claim, what was found, whether it holds."""

    claim: str
    found: str
    holds: bool


async def audit(trainers: Sequence[Trainer], observer: Observer) -> list[Finding]:
    """Compare what the trainers counted with what the database holds."""
    connection = await observer.connection()
    return [
        await _each_writer(connection, trainers),
        await _each_once(connection, trainers),
        await _counters(connection, trainers),
        Finding(
            claim="trainers that failed by themselves",
            found=str(failed := sum(t.process.returncode not in {0, -9} for t in trainers)),
            holds=failed == 0,
        ),
        Finding(
            claim="runs that did not finish",
            found=str(unended := await connection.fetchval(UNENDED)),
            holds=unended == 0,
        ),
        Finding(
            claim=f"most database connections ever seen (budget {CONNECTIONS_BUDGET})",
            found=str(observer.connections_max)
            if observer.connections_max <= CONNECTIONS_BUDGET
            else f"{observer.connections_max}: {', '.join(observer.backends)}",
            holds=observer.connections_max == CONNECTIONS_BUDGET,
        ),
    ]


async def _each_writer(connection: asyncpg.Connection, trainers: Sequence[Trainer]) -> Finding:
    rows = await connection.fetch(STORED)
    stored = {(row["run_id"], row["rank"], row["attempt"]): row["points"] for row in rows}
    wrong = []
    logged_total = stored_total = 0
    for trainer in trainers:
        began, returned = trainer.logged_points()
        points = stored.pop((trainer.job.run_uuid, trainer.rank, trainer.attempt), 0)
        # A killed process may have died inside its last log call, after the
        # record was written and before the call returned.
        if not (returned <= points <= began and (began == returned or trainer.was_killed)):
            wrong.append(f"{trainer.job.name}: logged {returned}, stored {points}")
        logged_total += returned
        stored_total += points
    wrong += [f"unknown writer {key}" for key in stored]
    return Finding(
        claim="points logged = points stored, for each process of each attempt",
        found=wrong[0] if wrong else _equation(logged_total, stored_total),
        holds=not wrong,
    )


def _equation(logged: int, stored: int) -> str:
    if stored == logged:
        return f"{logged:,} = {stored:,}"
    return f"{logged:,} + {stored - logged} of the call that the kill cut off = {stored:,}"


async def _each_once(connection: asyncpg.Connection, trainers: Sequence[Trainer]) -> Finding:
    runs = list({trainer.job.run_uuid for trainer in trainers})
    points, distinct = await connection.fetchrow(DISTINCT, runs)
    return Finding(
        claim="points stored more than once",
        found=str(points - distinct),
        holds=points == distinct and points > 0,
    )


async def _counters(connection: asyncpg.Connection, trainers: Sequence[Trainer]) -> Finding:
    row = await connection.fetchrow(COUNTED)
    began = sum(trainer.logged_points()[0] for trainer in trainers)
    returned = sum(trainer.logged_points()[1] for trainer in trainers)
    return Finding(
        claim="counters of the gateway: accepted, rejected, lost",
        found=f"{row['accepted']:,}, {row['rejected']}, {row['lost']}",
        holds=returned <= row["accepted"] <= began and not row["rejected"] and not row["lost"],
    )
