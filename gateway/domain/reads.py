"""What a read of metrics asks for and what it gives. Values only."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from gateway.domain.limits import STEP_MAX, STEP_MIN
from gateway.domain.policies import Points, RankAggregation, StepPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadQuery:
    """What to read; see ReadMetricsRequest.

    Attributes:
        workspace_id: the caller's; runs of others do not exist.
        run_id: the run.
        keys: none means all.
        ranks: none means all.
        aggregation: over the ranks; not with StepPolicy.ALL or follow.
        first_step: inclusive.
        last_step: inclusive.
        step_policy: None means the run's.
        max_points: of each series, or of each attempt of it where attempts are
            kept apart; 0 means all.
        include_hidden: also what later attempts hide; keeps attempts apart.
        follow: go on with new points after the snapshot; keeps attempts apart.
    """

    workspace_id: int
    run_id: UUID
    keys: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    aggregation: RankAggregation = RankAggregation.NONE
    first_step: int = STEP_MIN
    last_step: int = STEP_MAX
    step_policy: StepPolicy | None = None
    max_points: int = 0
    include_hidden: bool = False
    follow: bool = False

    @property
    def attempts_apart(self) -> bool:
        """Whether each attempt of a series is returned for itself.

        A step policy then decides within the attempt, and whoever reads can
        apply it across attempts, points that follow included.
        """
        return self.include_hidden or self.follow


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPart:
    """Some points of one series, ascending in step.

    Attributes:
        key: the metric's key.
        rank: -1 when aggregated over ranks.
        attempt: of all its points, where attempts are kept apart; else 0.
        points: at least one.
    """

    key: str
    rank: int
    attempt: int
    points: Points


Emit = Callable[[SeriesPart | None], Awaitable[None]]
"""Takes the parts of a read in order; None marks the snapshot's end of a following read."""
