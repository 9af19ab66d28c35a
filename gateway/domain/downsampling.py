"""Down-sampling by M4: first, last, least and greatest point of each of equal spans.

Uwe Jugel, Zbigniew Jerzak, Gregor Hackenbroich, Volker Markl: "M4: A
Visualization-Oriented Time Series Data Aggregation", PVLDB 7(10), 2014.
Drawn as a line at one span a pixel column, the chosen points give the same
picture as all points.

Rules. The steps from the first to the last are divided into at most
`max_points // 4` spans of equal integer width. Of each span that has points
are kept: the first, the last, the first of the least and the first of the
greatest. NaN is neither least nor greatest: it survives as the first or last of
a span only. A series of at most `max_points` points is kept whole.

Reducing is associative: points of one grid may be reduced in pieces and the
pieces reduced again, with the same outcome as all at once. Pieces that hold no
chosen point may be left out, which `candidate_chunks` makes use of.
"""

import numpy as np
from numpy.typing import NDArray

from gateway.domain.policies import Points

_REDUCE_AT_POINTS = 131_072  # points held before a piece is reduced: 4 MiB


def span_width(first_step: int, last_step: int, max_points: int) -> int:
    """Return how many steps a span covers, at least 1.

    Args:
        first_step: the least step of the series.
        last_step: the greatest, inclusive.
        max_points: at least 4.
    """
    return -(-(last_step - first_step + 1) // (max_points // 4))


def span_index(steps: NDArray[np.int64], first_step: int, width: int) -> NDArray[np.uint64]:
    """Return the span of each step: uint64[n], from 0. Steps must not lie before `first_step`."""
    # The difference of two steps fits int64 (see STEP_MAX), the width of a single span may not.
    offset = (steps - first_step).view(np.uint64)
    spans: NDArray[np.uint64] = offset // np.uint64(width)
    return spans


def chosen_points(
    steps: NDArray[np.int64], values: NDArray[np.float64], *, first_step: int, width: int
) -> NDArray[np.intp]:
    """Return the indices that M4 keeps, ascending and without repeats.

    Args:
        steps: int64[n], ascending; repeats are fine.
        values: float64[n].
        first_step: where the first span begins; at or before steps[0].
        width: steps in a span.
    """
    if not len(steps):
        return np.empty(0, np.intp)
    spans = span_index(steps, first_step, width)
    starts = np.flatnonzero(np.r_[True, spans[1:] != spans[:-1]])
    lengths = np.diff(np.r_[starts, len(steps)])
    ends = starts + lengths - 1
    least = _first_equal(values, np.fmin.reduceat(values, starts), starts, lengths)
    greatest = _first_equal(values, np.fmax.reduceat(values, starts), starts, lengths)
    return np.unique(np.concatenate((starts, ends, least, greatest)))


def _first_equal(
    values: NDArray[np.float64],
    wanted: NDArray[np.float64],
    starts: NDArray[np.intp],
    lengths: NDArray[np.intp],
) -> NDArray[np.intp]:
    """Return the first index in each span that holds its wanted value; none where that is NaN."""
    hits = np.flatnonzero(values == np.repeat(wanted, lengths))
    span = starts.searchsorted(hits, side="right")
    return hits[np.r_[True, span[1:] != span[:-1]]] if len(hits) else hits


def candidate_chunks(
    first_steps: NDArray[np.int64],
    last_steps: NDArray[np.int64],
    min_values: NDArray[np.float64],
    max_values: NDArray[np.float64],
    *,
    first_step: int,
    width: int,
) -> NDArray[np.bool_]:
    """Return which chunks may hold a point that M4 keeps: bool[n].

    Args:
        first_steps: int64[n], of chunks that do not overlap, ascending.
        last_steps: int64[n].
        min_values: float64[n], NaN when all values of the chunk are.
        max_values: float64[n].
        first_step: where the first span begins; at or before first_steps[0].
        width: steps in a span.
    """
    begin = span_index(first_steps, first_step, width)
    end = span_index(last_steps, first_step, width)
    chosen: NDArray[np.bool_] = begin != end  # its extremes may belong to either span
    # The ends of a span lie in a chunk that crosses its border, or in the
    # outermost chunk inside it.
    chosen |= np.r_[True, begin[1:] != end[:-1]]
    chosen |= np.r_[end[:-1] != begin[1:], True]
    inside = np.flatnonzero(begin == end)
    if len(inside):
        span = begin[inside]
        starts = np.flatnonzero(np.r_[True, span[1:] != span[:-1]])
        lengths = np.diff(np.r_[starts, len(inside)])
        least, greatest = min_values[inside], max_values[inside]
        for column, fold in ((least, np.fmin), (greatest, np.fmax)):
            first = _first_equal(column, fold.reduceat(column, starts), starts, lengths)
            chosen[inside[first]] = True
    return chosen


class M4Reducer:
    """Reduces a series that arrives in ascending pieces to at most `max_points` points."""

    def __init__(
        self, *, first_step: int, last_step: int, max_points: int, partial: bool = False
    ) -> None:
        """Prepare for the steps from `first_step` to `last_step`, both inclusive.

        Args:
            first_step: the least step that will come.
            last_step: the greatest.
            max_points: at least 4.
            partial: the pieces are known to leave points out, of more than
                `max_points` in all; so they are always reduced.
        """
        self._first_step = first_step
        self._width = span_width(first_step, last_step, max_points)
        self._max_points = max_points
        self._seen = max_points + 1 if partial else 0
        self._held = 0
        self._pieces: list[Points] = []

    def push(self, points: Points) -> None:
        """Take the next piece."""
        self._seen += len(points)
        self._held += len(points)
        self._pieces.append(points)
        if self._held >= max(_REDUCE_AT_POINTS, 2 * self._max_points):
            self._reduce()

    def finish(self) -> Points | None:
        """Return what is kept; None when nothing came."""
        if not self._pieces:
            return None
        self._reduce()
        return self._pieces[0]

    def _reduce(self) -> None:
        points = Points.concatenate(self._pieces)
        if self._seen > self._max_points:
            points = points.take(
                chosen_points(
                    points.step, points.value, first_step=self._first_step, width=self._width
                )
            )
        self._pieces = [points]
        self._held = len(points)
