"""Lists the series of a run with the summaries of their visible points.

Summaries are kept per writer and folded here. Where a later attempt's resume
step cuts the points of an earlier one, the kept summary says too much; those
are computed from the chunks, at most `_RECOMPUTED_POINTS_MAX` points a page
(a page that would need more ends early, after at least one series).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from gateway.domain.limits import KEY_CHARACTERS_MAX
from gateway.store.queries import load
from gateway.store.run_rules import read_cutoffs

_SQL: Final = load("reading")
_RECOMPUTED_POINTS_MAX: Final = 4_000_000
_GREATEST_CHARACTER: Final = "\U0010ffff"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesQuery:
    """What to list.

    Attributes:
        workspace_id: the caller's.
        run_id: the run.
        key_prefix: only keys that begin with this.
        after: the (key, rank) behind which the page begins; None for the first.
        limit: the most series to return.
    """

    workspace_id: int
    run_id: UUID
    key_prefix: str = ""
    after: tuple[str, int] | None = None
    limit: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesSummary:
    """A series and its visible points; `last` by (step, time, value), NaN below every number.

    Without visible points: count, step and time 0, the values NaN.
    """

    key: str
    rank: int
    point_count: int
    last_step: int
    last_time_us: int
    last_value: float
    min_value: float
    max_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPage:
    """A page; `next_after` is None on the last."""

    series: list[SeriesSummary]
    next_after: tuple[str, int] | None


async def list_series(connection: asyncpg.Connection, query: SeriesQuery) -> SeriesPage:
    """Return a page of series, ordered by (key, rank).

    A page may hold fewer than `limit`, even none, and yet not be the last.
    """
    after_key, after_rank = query.after or ("", -1)
    rows = await connection.fetch(
        _SQL["series_page"],
        query.run_id,
        query.key_prefix,
        query.key_prefix + _GREATEST_CHARACTER * KEY_CHARACTERS_MAX,
        after_key,
        after_rank,
        query.limit + 1,
    )
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    summaries: dict[int, list[asyncpg.Record]] = {row["series_id"]: [] for row in rows}
    for row in await connection.fetch(_SQL["summaries_of_series"], query.run_id, list(summaries)):
        summaries[row["series_id"]].append(row)

    hidden, exempt_keys, _ = await read_cutoffs(connection, query.run_id)
    kept: list[asyncpg.Record] = []
    cut: list[tuple[int, int, int]] = []
    cut_points = 0
    for row in rows:
        mine = [] if row["key"] in exempt_keys else summaries[row["series_id"]]
        crossing = [
            part
            for part in mine
            if part["last_step"] >= hidden.get(part["attempt"], part["last_step"] + 1)
        ]
        cut_points += sum(part["point_count"] for part in crossing)
        if kept and cut_points > _RECOMPUTED_POINTS_MAX:
            more = True
            break
        kept.append(row)
        for part in crossing:
            cut.append((row["series_id"], part["attempt"], hidden[part["attempt"]]))
            summaries[row["series_id"]].remove(part)
    stored = {series_id for series_id, _, _ in cut}
    for part in await cut_summaries(connection, query.run_id, cut):
        summaries[part["series_id"]].append(part)
    return SeriesPage(
        series=[
            fold(row["key"], row["rank"], summaries[row["series_id"]])
            for row in kept
            # A series without any committed point does not exist yet.
            if summaries[row["series_id"]] or row["series_id"] in stored
        ],
        next_after=(kept[-1]["key"], kept[-1]["rank"]) if more else None,
    )


async def cut_summaries(
    connection: asyncpg.Connection, run_id: UUID, cut: Sequence[tuple[int, int, int]]
) -> list[asyncpg.Record]:
    """Return what stays visible of (series, attempt, the step from which on it is hidden)."""
    if not cut:
        return []
    columns = [list(column) for column in zip(*cut, strict=True)]
    parts: list[asyncpg.Record] = await connection.fetch(_SQL["cut_summaries"], run_id, *columns)
    return parts


def fold(key: str, rank: int, parts: Sequence[asyncpg.Record]) -> SeriesSummary:
    """Return the summary of a series whose attempts have the summaries `parts`."""
    last = max(parts, key=_order, default=None)
    numbers = [part for part in parts if not math.isnan(part["min_value"])]
    return SeriesSummary(
        key=key,
        rank=rank,
        point_count=sum(part["point_count"] for part in parts),
        last_step=0 if last is None else last["last_step"],
        last_time_us=0 if last is None else last["last_time_us"],
        last_value=math.nan if last is None else last["last_value"],
        min_value=min((part["min_value"] for part in numbers), default=math.nan),
        max_value=max((part["max_value"] for part in numbers), default=math.nan),
    )


def _order(part: asyncpg.Record) -> tuple[int, int, bool, float]:
    value: float = part["last_value"]
    is_number = not math.isnan(value)
    return part["last_step"], part["last_time_us"], is_number, value if is_number else 0.0
