"""Finds the points that were committed since a reader looked: each exactly once.

A follower's cursor is {writer_no: committed_sequence}, read in the same snapshot
as the points before it. Chunks say which writer committed them and up to which
sequence, so a chunk is new if, and only if, its last_sequence is above the
cursor of its writer; neither clocks nor gateways matter.

Finding new chunks without an index on that: the writers' summaries say how
many points each writer has committed to each series, and its greatest step. A
series with more points than before is looked up by the index above that step,
where an ordered job's new chunks lie. Only when fewer points are found there
than the counts promise did some come late; then that series, and only it, is
searched from its beginning.

Compaction merges chunks, and a merged chunk is new to nobody. It says with each
writer how far it has come (compacted_sequence): a follower that is not as far has
lost its place, and is told so. While it reads a snapshot, which may take minutes, it
does not fall behind: `hold_place` keeps compaction from going further. After that it
has the time between two looks of the compactor, `compaction_idle_s`, to look for
itself.

Memory: 24 bytes for each (writer, followed series).
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg
import numpy as np
from numpy.typing import NDArray

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.limits import STEP_MAX, STEP_MIN
from gateway.domain.reads import ReadQuery, SeriesPart
from gateway.store.chunk_rows import Chunks, copy_chunks
from gateway.store.queries import load

_SQL: Final = load("reading")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Committed:
    """What one writer has committed: ascending series ids, points and greatest step of each."""

    series_ids: NDArray[np.int64]
    point_counts: NDArray[np.int64]
    last_steps: NDArray[np.int64]


_NOTHING: Final = _Committed(
    series_ids=np.empty(0, np.int64),
    point_counts=np.empty(0, np.int64),
    last_steps=np.empty(0, np.int64),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """New points of one writer in one series, and where to look for them."""

    key: str
    rank: int
    attempt: int
    series_id: int
    writer_no: int
    after_sequence: int
    after_step: int  # the writer's greatest before; STEP_MIN - 1 if it had none in the series
    point_count: int


class Follower:
    """The cursor of one following read."""

    def __init__(self, query: ReadQuery) -> None:
        self._query = query
        self._run_id: UUID = query.run_id
        self._keys = frozenset(query.keys)
        self._ranks = frozenset(query.ranks)
        self._begun = False
        self._sum: tuple[int, int] = (0, 0)
        self._sequences: dict[int, int] = {}
        self._committed: dict[int, _Committed] = {}
        self._series: dict[int, tuple[str, int] | None] = {}  # None: not followed

    async def anything_new(self, connection: asyncpg.Connection) -> bool:
        """Return whether any writer of the run has committed since; one row, cheap."""
        row = await connection.fetchrow(_SQL["watermark_sum"], self._run_id)
        return (row["writers"], row["committed"]) != self._sum

    async def hold_place(self, connection: asyncpg.Connection) -> None:
        """Keep what is committed from now on from being merged until the transaction ends.

        One look of the compactor may be under way, and is waited for. It frees what was
        committed at the look before, which this transaction sees.
        """
        await connection.execute(_SQL["hold_place"], self._run_id)

    async def advance(self, connection: asyncpg.Connection) -> list[News]:
        """Move the cursor to the connection's snapshot; return what lies between.

        What a new follower gets first is everything: the snapshot it has read.

        Raises:
            HeadraceError: FOLLOWER_LAGGED.
        """
        rows = await connection.fetch(_SQL["watermarks"], self._run_id)
        self._sum = (len(rows), sum(row["committed_sequence"] for row in rows))
        ahead = {
            row["writer_no"]: row
            for row in rows
            if row["committed_sequence"] > self._sequences.get(row["writer_no"], 0)
            and (not self._ranks or row["rank"] in self._ranks)
        }
        if self._begun:
            self._check_place(ahead.values())
        self._begun = True
        committed = await self._blocks(connection, list(ahead))
        changes = {
            writer_no: _changes(self._committed.get(writer_no, _NOTHING), after)
            for writer_no, after in committed.items()
        }
        await self._name_series(
            connection,
            {series_id for change in changes.values() for series_id, _, _ in change},
        )
        news = [
            News(
                key=series[0],
                rank=series[1],
                attempt=ahead[writer_no]["attempt"],
                series_id=series_id,
                writer_no=writer_no,
                after_sequence=self._sequences.get(writer_no, 0),
                after_step=after_step,
                point_count=points,
            )
            for writer_no, change in changes.items()
            for series_id, points, after_step in change
            if (series := self._series[series_id]) is not None
        ]
        self._committed.update(committed)
        for writer_no, row in ahead.items():
            self._sequences[writer_no] = row["committed_sequence"]
        return sorted(news, key=lambda item: (item.key, item.rank, item.attempt, item.writer_no))

    def _check_place(self, ahead: Iterable[asyncpg.Record]) -> None:
        for row in ahead:
            if self._sequences.get(row["writer_no"], 0) < row["compacted_sequence"]:
                raise HeadraceError(
                    Reason.FOLLOWER_LAGGED,
                    "the read was stalled for so long that points it has not sent were merged"
                    " with points it has; read again from the start",
                )

    async def read(
        self,
        connection: asyncpg.Connection,
        news: list[News],
        take: Callable[[SeriesPart], Awaitable[None]],
    ) -> None:
        """Push the points of `news`, which must come from the same snapshot."""
        found = np.zeros(len(news), np.int64)

        async def receive(chunks: Chunks, _last: bool) -> None:
            np.add.at(found, chunks.position, np.diff(chunks.starts))
            for part in _parts(chunks, news, self._query):
                await take(part)

        above = [(i, item.after_step + 1, STEP_MAX) for i, item in enumerate(news)]
        await self._copy(connection, news, above, receive)
        late = [
            (i, STEP_MIN, item.after_step)
            for i, item in enumerate(news)
            if found[i] < item.point_count and item.after_step >= STEP_MIN
        ]
        if late:
            await self._copy(connection, news, late, receive)

    async def _copy(
        self,
        connection: asyncpg.Connection,
        news: list[News],
        where: list[tuple[int, int, int]],
        receive: Callable[[Chunks, bool], Awaitable[None]],
    ) -> None:
        """Copy the news at some positions, of the chunks that begin between two steps."""
        items = [news[position] for position, _, _ in where]
        await copy_chunks(
            connection,
            _SQL["chunks_since"],
            self._run_id,
            [item.series_id for item in items],
            [position for position, _, _ in where],
            [item.rank for item in items],
            [item.writer_no for item in items],
            [item.after_sequence for item in items],
            [first for _, first, _ in where],
            [last for _, _, last in where],
            take=receive,
        )

    async def _blocks(
        self, connection: asyncpg.Connection, writers: list[int]
    ) -> dict[int, _Committed]:
        if not writers:
            return {}
        columns: dict[int, tuple[list[int], list[int], list[int]]] = {}
        for row in await connection.fetch(_SQL["writer_blocks"], self._run_id, writers):
            ids, counts, steps = columns.setdefault(row["writer_no"], ([], [], []))
            ids += row["series_ids"]
            counts += row["point_counts"]
            steps += row["last_steps"]
        committed = {}
        for writer_no, (ids, counts, steps) in columns.items():
            order = np.argsort(np.array(ids, np.int64))
            committed[writer_no] = _Committed(
                series_ids=np.array(ids, np.int64)[order],
                point_counts=np.array(counts, np.int64)[order],
                last_steps=np.array(steps, np.int64)[order],
            )
        return committed

    async def _name_series(self, connection: asyncpg.Connection, series_ids: set[int]) -> None:
        unknown = [series_id for series_id in series_ids if series_id not in self._series]
        if not unknown:
            return
        for row in await connection.fetch(_SQL["series_by_ids"], self._run_id, unknown):
            followed = (not self._keys or row["key"] in self._keys) and (
                not self._ranks or row["rank"] in self._ranks
            )
            self._series[row["series_id"]] = (row["key"], row["rank"]) if followed else None


def _changes(before: _Committed, after: _Committed) -> list[tuple[int, int, int]]:
    """Return (series_id, new points, greatest step before) of the series that grew."""
    place = before.series_ids.searchsorted(after.series_ids)
    known = np.zeros(len(place), np.bool_)
    inside = place < len(before.series_ids)
    known[inside] = before.series_ids[place[inside]] == after.series_ids[inside]
    grown = after.point_counts.copy()
    grown[known] -= before.point_counts[place[known]]
    return [
        (
            int(after.series_ids[i]),
            int(grown[i]),
            int(before.last_steps[place[i]]) if known[i] else STEP_MIN - 1,
        )
        for i in np.flatnonzero(grown > 0).tolist()
    ]


def _parts(chunks: Chunks, news: list[News], query: ReadQuery) -> list[SeriesPart]:
    """Cut chunks where their group changes; each part ascending in step."""
    borders = np.flatnonzero(chunks.position[1:] != chunks.position[:-1]) + 1
    parts = []
    for begin, end in zip([0, *borders], [*borders, len(chunks)], strict=True):
        item = news[int(chunks.position[begin])]
        points = chunks.points.take(slice(chunks.starts[begin], chunks.starts[end]))
        inside = (points.step >= query.first_step) & (points.step <= query.last_step)
        chosen = np.flatnonzero(inside)
        chosen = chosen[np.argsort(points.step[chosen], kind="stable")]
        if len(chosen):
            parts.append(
                SeriesPart(
                    key=item.key, rank=item.rank, attempt=item.attempt, points=points.take(chosen)
                )
            )
    return parts
