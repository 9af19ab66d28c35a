"""How stored points become the points a reader sees: attempts, step policies, ranks.

Pure functions over columns of points (numpy arrays of equal length). The same
rules stand as SQL in the view `metric_points`; tests hold the two equal.

The order of points at one step is (attempt, time, value), NaN below every
number. It is total up to 0.0 and -0.0, which count as equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

AGGREGATE_RANK: Final = -1
"""The rank of points that were aggregated over ranks."""


class StepPolicy(IntEnum):
    """Which of several points at one step a read returns; see run_service.proto."""

    LAST = 1
    FIRST = 2
    ALL = 3


class RankAggregation(IntEnum):
    """How the ranks of one key become one series; see metric_service.proto."""

    NONE = 0
    MEAN = 1
    MIN = 2
    MAX = 3
    SUM = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Columns of n points.

    Attributes:
        step: int64[n].
        time_us: int64[n], µs since 1970-01-01 UTC.
        value: float64[n].
        attempt: int32[n].
        rank: int32[n].
    """

    step: NDArray[np.int64]
    time_us: NDArray[np.int64]
    value: NDArray[np.float64]
    attempt: NDArray[np.int32]
    rank: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.step)

    def take(self, chosen: NDArray[np.intp] | NDArray[np.bool_] | slice) -> "Points":
        """Return the chosen points: indices in their order, a mask, or a slice (a view)."""
        return Points(
            step=self.step[chosen],
            time_us=self.time_us[chosen],
            value=self.value[chosen],
            attempt=self.attempt[chosen],
            rank=self.rank[chosen],
        )

    @staticmethod
    def concatenate(parts: "Sequence[Points]") -> "Points":
        """Return the parts end to end; at least one."""
        if len(parts) == 1:
            return parts[0]
        return Points(
            step=np.concatenate([part.step for part in parts]),
            time_us=np.concatenate([part.time_us for part in parts]),
            value=np.concatenate([part.value for part in parts]),
            attempt=np.concatenate([part.attempt for part in parts]),
            rank=np.concatenate([part.rank for part in parts]),
        )


def cutoffs(resume_steps: Mapping[int, int | None]) -> dict[int, int]:
    """Return from which step on each attempt is hidden: the least resume step of later ones.

    Args:
        resume_steps: of every attempt, by number; None hides nothing.

    Returns:
        The hidden attempts only; one that nothing hides is absent.
    """
    hidden: dict[int, int] = {}
    least: int | None = None
    for attempt in sorted(resume_steps, reverse=True):
        if least is not None:
            hidden[attempt] = least
        resume_step = resume_steps[attempt]
        if resume_step is not None:
            least = resume_step if least is None else min(least, resume_step)
    return hidden


def visible(
    step: NDArray[np.int64], attempt: NDArray[np.int32], hidden_from: Mapping[int, int]
) -> NDArray[np.bool_]:
    """Return which points no later attempt hides: bool[n].

    Args:
        step: int64[n].
        attempt: int32[n].
        hidden_from: what `cutoffs` returns; empty for an exempt key.
    """
    mask = np.ones(len(step), np.bool_)
    for number, cutoff in hidden_from.items():
        mask &= (attempt != number) | (step < cutoff)
    return mask


def resolve(points: Points, policy: StepPolicy) -> Points:
    """Return the points that a step policy leaves of each rank, ascending in (step, rank).

    Points of one rank and step come out in the order (attempt, time, value).
    """
    step, rank = points.step, points.rank
    if len(step) < 2 or bool((step[1:] > step[:-1]).all()):
        return points
    order = (
        np.lexsort((rank, step)) if bool((rank != rank[0]).any()) else step.argsort(kind="stable")
    )
    points = points.take(order)
    step, rank = points.step, points.rank
    repeats = (step[1:] == step[:-1]) & (rank[1:] == rank[:-1])
    if not bool(repeats.any()):
        return points
    points = _order_repeats(points, repeats)
    keep = np.ones(len(step), np.bool_)
    if policy is StepPolicy.LAST:
        keep[:-1] = ~repeats
    elif policy is StepPolicy.FIRST:
        keep[1:] = ~repeats
    else:
        value = points.value
        equal = (value[1:] == value[:-1]) | (np.isnan(value[1:]) & np.isnan(value[:-1]))
        same_time = points.time_us[1:] == points.time_us[:-1]
        same_attempt = points.attempt[1:] == points.attempt[:-1]
        keep[1:] = ~(repeats & equal & same_time & same_attempt)
    return points.take(keep)


def _order_repeats(points: Points, repeats: NDArray[np.bool_]) -> Points:
    """Sort points that share (step, rank) by (attempt, time, value); the rest stays in place."""
    shared = np.zeros(len(points), np.bool_)
    shared[1:] = repeats
    shared[:-1] |= repeats
    places = np.flatnonzero(shared)
    some = points.take(places)
    is_number = ~np.isnan(some.value)
    value = np.where(is_number, some.value, 0.0)
    order = np.arange(len(points))
    order[places] = places[
        np.lexsort((value, is_number, some.time_us, some.attempt, some.rank, some.step))
    ]
    return points.take(order)


def aggregate_ranks(points: Points, aggregation: RankAggregation) -> Points:
    """Return one point a step, over the ranks that have the step.

    Args:
        points: ascending in (step, rank), each at most once: what `resolve`
            leaves under LAST or FIRST.

    Returns:
        Rank -1, the greatest time and attempt of the points of the step. MEAN
        and SUM are NaN if any value is, MIN and MAX only if all are.
    """
    if aggregation is RankAggregation.NONE or not len(points):
        return points
    starts = np.flatnonzero(np.r_[True, points.step[1:] != points.step[:-1]])
    value = points.value
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, as everywhere
        match aggregation:
            case RankAggregation.MIN:
                folded = np.fmin.reduceat(value, starts)
            case RankAggregation.MAX:
                folded = np.fmax.reduceat(value, starts)
            case _:
                folded = np.add.reduceat(value, starts)
                if aggregation is RankAggregation.MEAN:
                    folded = folded / np.diff(np.r_[starts, len(value)])
    return Points(
        step=points.step[starts],
        time_us=np.maximum.reduceat(points.time_us, starts),
        value=folded,
        attempt=np.maximum.reduceat(points.attempt, starts),
        rank=np.full(len(starts), AGGREGATE_RANK, np.int32),
    )


class StepResolver:
    """Resolves a series that arrives in pieces, holding back only what may still change.

    Pieces come in any order of steps; with each, the caller says below which
    step nothing more will come. Under LAST and FIRST the memory is that of the
    points at or above that step; under ALL too, but there every repeat counts.
    """

    def __init__(self, policy: StepPolicy, aggregation: RankAggregation) -> None:
        self._policy = policy
        self._aggregation = aggregation
        self._pending: list[Points] = []

    def push(self, points: Points, *, complete_below: int) -> Points | None:
        """Take points and return those below `complete_below`, resolved and ascending."""
        if len(points):
            self._pending.append(points)
        if not self._pending:
            return None
        resolved = resolve(Points.concatenate(self._pending), self._policy)
        cut = int(resolved.step.searchsorted(complete_below))
        self._pending = [resolved.take(slice(cut, None))] if cut < len(resolved) else []
        return aggregate_ranks(resolved.take(slice(0, cut)), self._aggregation) if cut else None

    def finish(self) -> Points | None:
        """Return the rest."""
        pending, self._pending = self._pending, []
        if not pending:
            return None
        resolved = resolve(Points.concatenate(pending), self._policy)
        return aggregate_ranks(resolved, self._aggregation)
