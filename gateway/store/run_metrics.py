"""Keeps run_metrics, what searches know of metrics, in step with the writers' summaries.

Flushes never touch run_metrics, so it may be indexed. It is refreshed for runs
that were heard of, at a stated delay, and at the end of each run: then it is exact.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import asyncpg

from gateway.store.queries import load
from gateway.store.summaries import SeriesQuery, SeriesSummary, list_series

_SQL: Final = load("run_metrics")
_SERIES_PER_PAGE: Final = 1_000


async def refresh_run_metrics(connection: asyncpg.Connection, run_ids: Sequence[UUID]) -> None:
    """Bring the rows of some runs up to date."""
    cut = {
        row["run_id"]: row["workspace_id"]
        for row in await connection.fetch(_SQL["with_cutoffs"], run_ids)
    }
    plain = sorted(run_id for run_id in run_ids if run_id not in cut)
    if plain:
        await connection.execute(_SQL["refresh"], plain)
    for run_id, workspace_id in sorted(cut.items()):
        await _refresh_cut(connection, run_id, workspace_id)


async def refresh_dirty(connection: asyncpg.Connection, *, runs_max: int, delay_s: float) -> int:
    """Refresh live runs heard of since their last refresh; return how many."""
    rows = await connection.fetch(_SQL["claim_dirty"], runs_max, delay_s)
    run_ids = [row["run_id"] for row in rows]
    if run_ids:
        await refresh_run_metrics(connection, run_ids)
    return len(run_ids)


async def _refresh_cut(connection: asyncpg.Connection, run_id: UUID, workspace_id: int) -> None:
    """Refresh a run of which a later attempt hides points."""
    lowest: dict[str, SeriesSummary] = {}
    after: tuple[str, int] | None = None
    while True:
        page = await list_series(
            connection,
            SeriesQuery(
                workspace_id=workspace_id, run_id=run_id, after=after, limit=_SERIES_PER_PAGE
            ),
        )
        for series in page.series:
            if series.point_count:
                lowest.setdefault(series.key, series)
        after = page.next_after
        if after is None:
            break
    found = list(lowest.values())
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
    await connection.execute(_SQL["drop_hidden"], run_id, list(lowest))
