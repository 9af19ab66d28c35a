"""Keeps run_metrics, what searches know of metrics, in step with the writers' summaries.

Flushes never touch run_metrics, so it may be indexed. It is refreshed for runs
that were heard of, at a stated delay, and at the end of each run: then it is exact.

However many refresh a run at a time, an older state never replaces a newer one. The
cost is linear in the run's series; where a later attempt hides points, the chunks
below its resume step are walked too, of one series a key.
"""

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import asyncpg
import structlog

from gateway.store.queries import load
from gateway.store.run_rules import read_cutoffs
from gateway.store.summaries import SeriesSummary, cut_summaries, fold

_LOG = structlog.get_logger(__name__)
_SQL: Final = load("run_metrics")
_AT_THE_END_S: Final = 10.0
"""What a refresh may take of the call that ends a run: a third of the time its caller gives it."""


async def refresh_run_metrics(connection: asyncpg.Connection, run_ids: Sequence[UUID]) -> None:
    """Bring the rows of some runs up to date, in the caller's transaction (read committed)."""
    cut = {row["run_id"] for row in await connection.fetch(_SQL["with_cutoffs"], run_ids)}
    plain = sorted(run_id for run_id in run_ids if run_id not in cut)
    if plain:
        await connection.execute(_SQL["refresh"], plain)
    for run_id in sorted(cut):
        await _refresh_cut(connection, run_id)


async def refresh_at_the_end(connection: asyncpg.Connection, run_id: UUID) -> None:
    """Bring the rows of a run up to date or, if that fails or takes long, have it done soon.

    The caller's transaction goes on either way.
    """
    try:
        async with asyncio.timeout(_AT_THE_END_S), connection.transaction():
            await refresh_run_metrics(connection, [run_id])
    except (TimeoutError, asyncpg.PostgresError) as error:
        _LOG.warning("search rows are behind the end of a run", run=run_id.hex, error=repr(error))
        await connection.execute(_SQL["mark_dirty"], run_id)


async def _refresh_cut(connection: asyncpg.Connection, run_id: UUID) -> None:
    """Refresh a run of which a later attempt hides points."""
    await connection.execute(_SQL["lock_cut"], run_id)
    found = await _visible(connection, run_id)
    await connection.execute(
        _SQL["put"],
        run_id,
        [series.key for series in found],
        [series.rank for series in found],
        [series.point_count for series in found],
        [series.last_step for series in found],
        [series.last_time_us for series in found],
        [series.last_value for series in found],
        [series.min_value for series in found],
        [series.max_value for series in found],
    )
    await connection.execute(_SQL["drop_hidden"], run_id, [series.key for series in found])


async def _visible(connection: asyncpg.Connection, run_id: UUID) -> list[SeriesSummary]:
    """Return the visible points of each key, those of the lowest rank that has any."""
    hidden, exempt_keys, _ = await read_cutoffs(connection, run_id)
    rows = await connection.fetch(
        _SQL["visible_parts"], run_id, list(hidden), list(hidden.values()), list(exempt_keys)
    )
    names = {row["series_id"]: (row["key"], row["rank"]) for row in rows}
    parts: dict[int, list[asyncpg.Record]] = {series_id: [] for series_id in names}
    cut = []
    for row in rows:
        if row["cut_from"] is None:
            parts[row["series_id"]].append(row)
        else:
            cut.append((row["series_id"], row["attempt"], row["cut_from"]))
    for part in await cut_summaries(connection, run_id, cut):
        parts[part["series_id"]].append(part)
    return [fold(*names[series_id], mine) for series_id, mine in parts.items() if mine]
