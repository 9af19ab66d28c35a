"""What a writer has committed to each of its series, kept by the writer's session.

Pure. The session that holds the writer's epoch is the only one to change its
summary, so a flush computes the new rows here and overwrites them in the store;
`apply` adopts them after the commit. A flush that fails leaves no trace.

The arithmetic is done once for all writers of a flush: per writer there is one
gather before and one scatter after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from gateway.domain.flush import SummaryRows
from gateway.domain.limits import SUMMARY_BLOCK_SERIES

INT64_MIN: Final = int(np.iinfo(np.int64).min)

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

# Rows of a summary's table. The last three hold float64 bits.
_SERIES_ID, _COUNT, _LAST_STEP, _LAST_TIME, _LAST_VALUE, _MIN_VALUE, _MAX_VALUE = range(7)
_EMPTY: Final = np.array([[0], [0], [INT64_MIN], [INT64_MIN], [0], [0], [0]], np.int64)
_EMPTY[_LAST_VALUE:] = np.array([[np.nan]] * 3).view(np.int64)


class WriterSummary:
    """The summary of one writer, by position: the order in which its series came.

    Attributes:
        table: int64, shape (7, capacity ≥ size); places from `size` on are empty.
        size: how many series have points.
    """

    __slots__ = ("size", "table")

    def __init__(self) -> None:
        self.size = 0
        self.table: Int64s = np.empty((7, 0), np.int64)

    @classmethod
    def from_rows(cls, rows: SummaryRows) -> "WriterSummary":
        """Restore a summary from all rows of its writer, ordered by block."""
        summary = cls()
        summary.size = len(rows.series_ids)
        table = np.empty((7, summary.size), np.int64)
        table[_SERIES_ID] = rows.series_ids
        table[_COUNT] = rows.point_counts
        table[_LAST_STEP] = rows.last_steps
        table[_LAST_TIME] = rows.last_times
        floats = table.view(np.float64)
        floats[_LAST_VALUE] = rows.last_values
        floats[_MIN_VALUE] = rows.min_values
        floats[_MAX_VALUE] = rows.max_values
        summary.table = table
        return summary

    def series_positions(self) -> dict[int, int]:
        """Return series id → position."""
        ids: list[int] = self.table[_SERIES_ID, : self.size].tolist()
        return {series_id: position for position, series_id in enumerate(ids)}

    def reserve(self, size: int) -> None:
        """Make room for `size` series; the new places are empty."""
        capacity = self.table.shape[1]
        if size > capacity:
            grown = np.repeat(_EMPTY, max(size, capacity * 2), axis=1)
            grown[:, :capacity] = self.table
            self.table = grown

    def apply(self, advanced: "Advanced") -> None:
        """Adopt what was committed."""
        self.table[:, advanced.places] = advanced.columns
        self.size = max(self.size, advanced.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryPart:
    """One writer's part of a flush.

    Attributes:
        positions: int32, the place of each series with points in this flush,
            distinct. Places at or above the summary's size continue it.
    """

    run_id: UUID
    writer_no: int
    summary: WriterSummary
    positions: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Points folded by series, in the order of the parts' positions; columns of equal length."""

    series_id: Int64s
    count: Int64s
    last_step: Int64s
    last_time: Int64s
    last_value: Float64s
    min_value: Float64s
    max_value: Float64s


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """A summary's next state: column i of `columns` (7, n) belongs at place i of `places`."""

    size: int
    places: Int64s | slice
    columns: Int64s


def advance(parts: Sequence[SummaryPart], fold: Fold) -> tuple[SummaryRows, list[Advanced], Int64s]:
    """Add a fold to the summaries.

    Returns:
        The rows to store; the next state of each part's summary; and the greatest step that
        was committed before to each series of the fold, INT64_MIN where there is none.
    """
    rows = SummaryRows()
    places_of = [_places(part, rows) for part in parts]
    states = [part.summary.table[:, places] for part, places in zip(parts, places_of, strict=True)]
    bases = np.cumsum([0, *(columns.shape[1] for columns in states)]).tolist()
    state = np.concatenate(states, axis=1)
    at = np.concatenate(
        [
            base
            + (
                part.positions
                if isinstance(places, slice)
                else np.searchsorted(places, part.positions)
            )
            for part, places, base in zip(parts, places_of, bases, strict=False)
        ]
    )
    marks = state[_LAST_STEP, at]
    _add(state, at, fold)

    floats = state.view(np.float64)
    rows.series_ids.extend(state[_SERIES_ID].tolist())
    rows.point_counts.extend(state[_COUNT].tolist())
    rows.last_steps.extend(state[_LAST_STEP].tolist())
    rows.last_times.extend(state[_LAST_TIME].tolist())
    rows.last_values.extend(floats[_LAST_VALUE].tolist())
    rows.min_values.extend(floats[_MIN_VALUE].tolist())
    rows.max_values.extend(floats[_MAX_VALUE].tolist())
    advanced = [
        Advanced(
            size=max(part.summary.size, int(part.positions.max()) + 1),
            places=places,
            columns=state[:, base:end],
        )
        for part, places, base, end in zip(parts, places_of, bases, bases[1:], strict=False)
    ]
    return rows, advanced, marks


def _places(part: SummaryPart, rows: SummaryRows) -> Int64s | slice:
    """Return the places of all blocks that a part changes, ascending, and name them in `rows`."""
    size = max(part.summary.size, int(part.positions.max()) + 1)
    part.summary.reserve(size)
    base = rows.hi[-1] if rows.hi else 0
    places: Int64s | slice
    if len(part.positions) == size:  # every series of the writer: the usual case
        blocks = list(range(-(-size // SUMMARY_BLOCK_SERIES)))
        places = slice(0, size)
    else:
        changed = np.unique(part.positions // SUMMARY_BLOCK_SERIES).astype(np.int64)
        blocks = changed.tolist()
        places = (changed[:, None] * SUMMARY_BLOCK_SERIES + np.arange(SUMMARY_BLOCK_SERIES)).ravel()
        places = places[places < size]
    rows.run_ids.extend([part.run_id] * len(blocks))
    rows.writer_nos.extend([part.writer_no] * len(blocks))
    rows.blocks.extend(blocks)
    # All blocks but the summary's last are full.
    for block in blocks:
        rows.lo.append(base + 1)
        base += min(SUMMARY_BLOCK_SERIES, size - block * SUMMARY_BLOCK_SERIES)
        rows.hi.append(base)
    return places


def _add(state: Int64s, at: Int64s, fold: Fold) -> None:
    """Add a fold to the columns `at` of `state`."""
    floats = state.view(np.float64)
    state[_SERIES_ID, at] = fold.series_id
    state[_COUNT, at] += fold.count
    floats[_MIN_VALUE, at] = np.fmin(floats[_MIN_VALUE, at], fold.min_value)
    floats[_MAX_VALUE, at] = np.fmax(floats[_MAX_VALUE, at], fold.max_value)
    newer = is_greater(
        (fold.last_step, fold.last_time, fold.last_value),
        (state[_LAST_STEP, at], state[_LAST_TIME, at], floats[_LAST_VALUE, at]),
    )
    changed = at[newer]
    state[_LAST_STEP, changed] = fold.last_step[newer]
    state[_LAST_TIME, changed] = fold.last_time[newer]
    floats[_LAST_VALUE, changed] = fold.last_value[newer]


Triple = tuple[Int64s, Int64s, Float64s]


def is_greater(left: Triple, right: Triple) -> NDArray[np.bool_]:
    """Return where `left` > `right` by (step, time, value), NaN below every number."""
    left_step, left_time, left_value = left
    right_step, right_time, right_value = right
    by_value = (left_value > right_value) | (np.isnan(right_value) & ~np.isnan(left_value))
    by_time = (left_time > right_time) | ((left_time == right_time) & by_value)
    greater: NDArray[np.bool_] = (left_step > right_step) | ((left_step == right_step) & by_time)
    return greater
