"""Reads one snapshot: from chunk rows to resolved, aggregated, down-sampled parts.

A `SnapshotRead` lives for one transaction and belongs to one task. It walks the
series of a run in order of (key, rank), a page at a time, and pushes what it
makes of their chunks. It holds one page of chunks (2 MiB), the points whose
steps overlap with chunks to come, and, down-sampling, the points kept so far.

A long series that is to be down-sampled is read by its *outlines* where that is
possible; see `outlines`. The outcome is the same.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Final

import asyncpg
import numpy as np
from numpy.typing import NDArray

from gateway.domain.downsampling import M4Reducer
from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.limits import READ_POINTS_PER_MESSAGE_MAX, STEP_MAX, STEP_MIN
from gateway.domain.policies import (
    AGGREGATE_RANK,
    Points,
    StepPolicy,
    StepResolver,
    visible,
)
from gateway.domain.reads import Emit, ReadQuery, SeriesPart
from gateway.store.chunk_rows import Chunks, copy_chunks
from gateway.store.outlines import steps_to_open
from gateway.store.queries import load
from gateway.store.run_rules import read_cutoffs, read_run

_SQL: Final = load("reading")
_SERIES_PER_PAGE: Final = 1_000
_KEYS_PER_QUERY: Final = 1_000
_OUTLINED_CHUNKS_MIN: Final = 64  # below it, opening all is as fast as choosing
_OUTLINED_CHUNKS_MAX: Final = 1_000_000  # an outline has 74 bytes
_STALL_S: Final = 8.0
"""How long a reader may take no message while a snapshot is held for it: 768 KiB in 8 s, as a line
of 1 Mbit/s does. A page may have many, and PostgreSQL waits for them all: `MetricReading` tells it
to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What a read returns as one series (or, attempts apart, as one per attempt).

    Attributes:
        key: the metric's key.
        rank: -1 when aggregated.
        series: (series_id, rank) of all it is made of.
        exempt: whether no resume step hides its points.
    """

    key: str
    rank: int
    series: tuple[tuple[int, int], ...]
    exempt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The size of a group: chunks and points that overlap with the read, visible steps."""

    chunk_count: int
    point_count: int
    first_step: int
    last_step: int


Extents = dict[tuple[int, int], Extent]
"""By (position of the group, attempt or 0)."""


async def give(emit: Emit, part: SeriesPart) -> None:
    """Emit a part while a snapshot is held for it, a message at a time.

    Raises:
        HeadraceError: OVERLOADED when the reader does not take a message in time.
    """
    for first in range(0, len(part.points), READ_POINTS_PER_MESSAGE_MAX):
        points = part.points.take(slice(first, first + READ_POINTS_PER_MESSAGE_MAX))
        try:
            async with asyncio.timeout(_STALL_S):
                await emit(replace(part, points=points))
        except TimeoutError:
            raise HeadraceError(
                Reason.OVERLOADED,
                f"the reader took nothing for {_STALL_S:.0f} s; take messages sooner or read less",
                limit=_STALL_S,
            ) from None


class SnapshotRead:
    """One read within one transaction."""

    def __init__(self, connection: asyncpg.Connection, query: ReadQuery, emit: Emit) -> None:
        self._connection = connection
        self._query = query
        self._emit = emit
        self._policy = StepPolicy.LAST
        self._hidden: dict[int, int] = {}
        self._exempt_keys: frozenset[str] = frozenset()
        self._apart = False

    async def run(self) -> None:
        """Push every part of the snapshot.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED, OVERLOADED.
        """
        query = self._query
        run_policy = await read_run(self._connection, query.run_id, workspace_id=query.workspace_id)
        self._policy = query.step_policy or run_policy
        if query.aggregation and self._policy is StepPolicy.ALL:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                "rank_aggregation needs step policy LAST or FIRST; the run's is ALL",
                field="step_policy",
                value="STEP_POLICY_ALL",
            )
        hidden, self._exempt_keys, attempts = await read_cutoffs(self._connection, query.run_id)
        self._hidden = {} if query.include_hidden else hidden
        self._apart = query.attempts_apart and attempts != 1
        if query.first_step > query.last_step:
            return
        async for page in self._pages():
            await self._read_groups(page)

    async def _pages(self) -> AsyncIterator[list[Group]]:
        keys = sorted(set(self._query.keys))  # by code point, as PostgreSQL's "C" orders UTF-8
        if not keys:
            async for page in self._pages_of(None):
                yield page
        for first in range(0, len(keys), _KEYS_PER_QUERY):
            async for page in self._pages_of(keys[first : first + _KEYS_PER_QUERY]):
                yield page

    async def _pages_of(self, keys: list[str] | None) -> AsyncIterator[list[Group]]:
        query = self._query
        ranks = list(query.ranks) or None
        key, rank, limit = "", -1, _SERIES_PER_PAGE
        while True:
            arguments = (query.run_id, key, rank, ranks, limit)
            if keys is None:
                rows = await self._connection.fetch(_SQL["read_page"], *arguments)
            else:
                sql = _SQL["read_page_of_keys"]
                rows = await self._connection.fetch(sql, *arguments, keys)
            last = len(rows) < limit
            if query.aggregation and not last:
                # The ranks of a key stay together: its page ends before the last key.
                whole = [row for row in rows if row["key"] != rows[-1]["key"]]
                if not whole:
                    limit *= 4
                    continue
                rows = whole
            if rows:
                yield self._groups(rows)
                key, rank, limit = rows[-1]["key"], rows[-1]["rank"], _SERIES_PER_PAGE
                if query.aggregation:
                    rank = 2**31 - 1
            if last:
                return

    def _groups(self, rows: list[asyncpg.Record]) -> list[Group]:
        if not self._query.aggregation:
            return [
                Group(
                    key=row["key"],
                    rank=row["rank"],
                    series=((row["series_id"], row["rank"]),),
                    exempt=row["key"] in self._exempt_keys,
                )
                for row in rows
            ]
        return [
            Group(
                key=key,
                rank=AGGREGATE_RANK,
                series=tuple((row["series_id"], row["rank"]) for row in of_key),
                exempt=key in self._exempt_keys,
            )
            for key, of_key in groupby(rows, key=lambda row: row["key"])
        ]

    async def _read_groups(self, groups: list[Group]) -> None:
        extents = await self._extents(groups) if self._query.max_points else {}
        together: list[int] = []  # positions read by one query
        for position in range(len(groups)):
            if self._worth_outlining(groups[position], extents.get((position, 0))):
                await self._read_together(groups, together, extents)
                together = []
                await self._read_outlined(groups, position, extents)
            else:
                together.append(position)
        await self._read_together(groups, together, extents)

    async def _extents(self, groups: list[Group]) -> Extents:
        query = self._query
        members = [(i, g, series_id) for i, g in enumerate(groups) for series_id, _ in g.series]
        rows = await self._connection.fetch(
            _SQL["extents"],
            query.run_id,
            [series_id for _, _, series_id in members],
            [position for position, _, _ in members],
            [group.exempt for _, group, _ in members],
            query.first_step,
            query.last_step,
            list(self._hidden),
            list(self._hidden.values()),
            self._apart,
        )
        return {
            (row["position"], row["attempt"]): Extent(
                chunk_count=row["chunk_count"],
                point_count=row["point_count"],
                first_step=row["first_step"],
                last_step=row["last_step"],
            )
            for row in rows
            if row["first_step"] is not None
        }

    async def _read_together(
        self, groups: list[Group], positions: list[int], extents: Extents
    ) -> None:
        if not positions:
            return
        query = self._query
        members = [(i, *member) for i in positions for member in groups[i].series]
        arguments: list[object] = [
            query.run_id,
            [series_id for _, series_id, _ in members],
            [position for position, _, _ in members],
            [rank for _, _, rank in members],
            query.first_step,
            query.last_step,
        ]
        sql = _SQL["chunks_by_series"]
        if self._apart or query.aggregation:
            sql = _SQL["chunks_by_group"]
            arguments.append(self._apart)
        fold = _Fold(self, groups, extents)
        await copy_chunks(self._connection, sql, *arguments, take=fold.take)
        await fold.finish()

    def _worth_outlining(self, group: Group, extent: Extent | None) -> bool:
        return (
            extent is not None
            and not self._apart
            and not self._query.aggregation
            and _OUTLINED_CHUNKS_MIN <= extent.chunk_count <= _OUTLINED_CHUNKS_MAX
            and extent.point_count > self._query.max_points
        )

    async def _read_outlined(self, groups: list[Group], position: int, extents: Extents) -> None:
        query, group, extent = self._query, groups[position], extents[position, 0]
        series_id, rank = group.series[0]
        chosen = await steps_to_open(
            self._connection,
            query,
            series_id,
            hidden={} if group.exempt else self._hidden,
            first_step=extent.first_step,
            last_step=extent.last_step,
        )
        if chosen is None:
            await self._read_together(groups, [position], extents)
            return
        fold = _Fold(self, groups, extents, partial=True)
        await copy_chunks(
            self._connection,
            _SQL["chunks_at_steps"],
            query.run_id,
            series_id,
            position,
            rank,
            chosen.tolist(),
            take=fold.take,
        )
        await fold.finish()

    def wanted(self, points: Points, group: Group) -> Points:
        """Return the points that are within the bounds and visible."""
        query = self._query
        mask: NDArray[np.bool_] | None = None
        if query.first_step > STEP_MIN or query.last_step < STEP_MAX:
            mask = (points.step >= query.first_step) & (points.step <= query.last_step)
        if self._hidden and not group.exempt:
            seen = visible(points.step, points.attempt, self._hidden)
            mask = seen if mask is None else mask & seen
        return points if mask is None or bool(mask.all()) else points.take(mask)

    def resolver(self) -> StepResolver:
        """Return what resolves the points of one group."""
        return StepResolver(self._policy, self._query.aggregation)

    def reducer(self, extent: Extent | None, *, partial: bool) -> M4Reducer | None:
        """Return what down-samples one group; None when all its points are returned."""
        if extent is None or extent.point_count <= self._query.max_points:
            return None
        return M4Reducer(
            first_step=extent.first_step,
            last_step=extent.last_step,
            max_points=self._query.max_points,
            partial=partial,
        )

    async def give(self, group: Group, attempt: int, points: Points | None) -> None:
        """Emit points of a group, if any."""
        if points is not None and len(points):
            shown = attempt if self._query.attempts_apart else 0
            part = SeriesPart(key=group.key, rank=group.rank, attempt=shown, points=points)
            await give(self._emit, part)

    @property
    def apart(self) -> bool:
        """Whether attempts form groups of their own."""
        return self._apart


class _Fold:
    """Turns a stream of chunks, ordered by (group, first_step), into parts."""

    def __init__(
        self, read: SnapshotRead, groups: list[Group], extents: Extents, *, partial: bool = False
    ) -> None:
        self._read = read
        self._groups = groups
        self._extents = extents
        self._partial = partial
        self._current = (-1, 0)
        self._attempt = 0
        self._last_first_step = STEP_MIN
        self._resolver = read.resolver()
        self._reducer: M4Reducer | None = None

    async def take(self, chunks: Chunks, last: bool) -> None:
        """Take the next page; after the last one, `finish` is still to be called."""
        position, attempt = chunks.position, chunks.attempt
        change = position[1:] != position[:-1]
        if self._read.apart:
            change |= attempt[1:] != attempt[:-1]
        borders = [0, *(np.flatnonzero(change) + 1).tolist(), len(chunks)]
        for begin, end in pairwise(borders):
            group = (int(position[begin]), int(attempt[begin]) if self._read.apart else 0)
            if group != self._current:
                await self._begin(group, int(attempt[begin]))
            self._check_order(chunks.first_step[begin:end])
            points = chunks.points.take(slice(chunks.starts[begin], chunks.starts[end]))
            points = self._read.wanted(points, self._groups[group[0]])
            whole = last or end < len(chunks)
            below = STEP_MAX + 1 if whole else self._last_first_step
            await self._give(self._resolver.push(points, complete_below=below))

    async def finish(self) -> None:
        """End the last group."""
        if self._current[0] < 0:
            return
        await self._give(self._resolver.finish())
        if self._reducer is not None:
            kept, self._reducer = self._reducer.finish(), None
            await self._give(kept)

    async def _begin(self, group: tuple[int, int], attempt: int) -> None:
        await self.finish()
        if group < self._current:
            raise RuntimeError("chunks came out of order: groups")
        self._current, self._attempt, self._last_first_step = group, attempt, STEP_MIN
        extent = self._extents.get(group)
        self._reducer = self._read.reducer(extent, partial=self._partial)

    def _check_order(self, first_steps: NDArray[np.int64]) -> None:
        # The order of a lateral join is PostgreSQL's habit, not its promise.
        if first_steps[0] < self._last_first_step or bool(
            (first_steps[1:] < first_steps[:-1]).any()
        ):
            raise RuntimeError("chunks came out of order: steps")
        self._last_first_step = int(first_steps[-1])

    async def _give(self, points: Points | None) -> None:
        if points is None:
            return
        if self._reducer is not None:
            self._reducer.push(points)
        else:
            await self._read.give(self._groups[self._current[0]], self._attempt, points)
