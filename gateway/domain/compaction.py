"""Which chunks are worth merging, and how many at a time. Pure decisions.

A *group* is what one writer has stored in one series; chunks merge only within
one. A chunk is *loose* until it was merged or found long enough: loose chunks hold
at most LOOSE_POINTS_MAX points, and what was merged is never merged again. So no
point is rewritten twice, however long its run goes on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from gateway.domain.limits import CHUNK_POINTS_MAX

LOOSE_POINTS_MAX: Final = CHUNK_POINTS_MAX // 2
"""Points of the longest chunk that is merged: a longer one costs 15 bytes a point already."""

GOING_ON_POINTS_MIN: Final = 2 * CHUNK_POINTS_MAX
"""Loose points from which a group of a run that goes on is merged: two full chunks."""

LOOKS: Final[tuple[int | None, ...]] = (395, 8_192, None)
"""How many chunks of a series that were never merged are looked at while its run goes on: those
with the greatest steps, among which the new ones of an ordered job are. Where all of them are
loose, the series came faster than it was merged, and the next number counts; None is all. 395
is a quarter more than a merge needs at most."""

BATCH_CHUNKS_MAX: Final = 2_048
"""Chunks merged by one transaction: at most 162 K points, 5 MB, some tens of ms, in which the
gateway's event loop merges and the others wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LooseGroup:
    """The loose chunks of one writer in one series, as far as they were looked at.

    Attributes:
        first_step: the least first step among them.
        seen_chunks: of the whole series that were never merged, loose or not.
    """

    series_id: int
    writer_no: int
    chunk_count: int
    point_count: int
    first_step: int
    seen_chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoosePoints:
    """The points of some loose chunks of one run: g groups, n points.

    Attributes:
        run_id: the run.
        series_id, writer_no: int64[g]. attempt: int32[g].
        group: int32[n], the group of each point.
        step, time_us: int64[n]. value: float64[n].
    """

    run_id: UUID
    series_id: NDArray[np.int64]
    writer_no: NDArray[np.int64]
    attempt: NDArray[np.int32]
    group: NDArray[np.int32]
    step: NDArray[np.int64]
    time_us: NDArray[np.int64]
    value: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedChunks:
    """The rows to store in their place: a binary COPY stream in pieces, of so many rows."""

    copy_pieces: list[memoryview]
    chunk_count: int


def is_overrun(group: LooseGroup, newest: int | None) -> bool:
    """Return whether a look at so many chunks was too short: all it saw were loose."""
    return group.chunk_count == group.seen_chunks == newest


def worth_merging(group: LooseGroup, *, run_ended: bool) -> bool:
    """Return whether a group is to be merged now.

    What is left of a run that goes on waits until it fills chunks; the end of the
    run merges the rest.
    """
    if run_ended:
        return group.chunk_count > 1
    return group.point_count >= GOING_ON_POINTS_MIN


def batches(groups: Iterable[LooseGroup]) -> Iterator[list[LooseGroup]]:
    """Put groups together into transactions of at most BATCH_CHUNKS_MAX chunks.

    A larger group stands alone; it takes several transactions.
    """
    batch: list[LooseGroup] = []
    chunks = 0
    for group in groups:
        if batch and chunks + group.chunk_count > BATCH_CHUNKS_MAX:
            yield batch
            batch, chunks = [], 0
        batch.append(group)
        chunks += group.chunk_count
    if batch:
        yield batch
