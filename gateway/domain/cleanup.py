"""Which runs of an experiment are deleted, and why the others are kept. Pure decisions.

A run is kept for any of these reasons: it is running, or was lost within a day and may
come back; it is protected by its tag; it ended less than `max_age` ago; it is among the
`keep_top` best; one of the runs nested in it, at any depth and in whatever experiment,
is kept. What no reason keeps goes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from gateway.domain.durations import duration_text, parse_duration_s

LOST_KEPT_S: Final = 86_400.0
"""For so long after its last sign of life a lost run counts as running: a day, 720 leases of
120 seconds. Its job may be cut off only, and bring what its spool has kept."""
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_BEST: Final = {":max": True, ":min": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What makes a run good: the greatest value that a metric has reached, or the least."""

    key: str
    greatest: bool

    @classmethod
    def parse(cls, text: str) -> "Ranking":
        """Read `metrics.val_ndcg:max`.

        Raises:
            ValueError: it is none.
        """
        name, direction = text[:-4], text[-4:]
        key = name.removeprefix("metrics.")
        if direction not in _BEST or key in {"", name}:
            raise ValueError(f"{text!r} is no ranking: as metrics.val_ndcg:max or metrics.loss:min")
        return cls(key=key, greatest=_BEST[direction])

    def __str__(self) -> str:
        return f"metrics.{self.key}:{'max' if self.greatest else 'min'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupRule:
    """What is kept of an experiment.

    Attributes:
        max_age_s: runs that ended less than so many seconds ago; None keeps none for that.
        keep_top: so many of the best by `by`.
    """

    experiment: str
    workspace: str = "default"
    max_age_s: float | None = None
    keep_top: int = 0
    by: Ranking | None = None

    def __post_init__(self) -> None:
        """Refuse rules that would delete everything, or do not say what is best."""
        if self.max_age_s is None and not self.keep_top:
            raise ValueError("a cleanup needs max_age or keep_top, or it would delete everything")
        if self.keep_top < 0:
            raise ValueError(f"keep_top must be at least 0, not {self.keep_top}")
        if bool(self.keep_top) != (self.by is not None):
            raise ValueError("keep_top and by go together")

    @classmethod
    def parse(
        cls,
        *,
        experiment: str,
        workspace: str = "default",
        max_age: str | None = None,
        keep_top: int = 0,
        by: str | None = None,
    ) -> "CleanupRule":
        """Make a rule of what people write.

        Raises:
            ValueError: saying what is wrong.
        """
        return cls(
            experiment=experiment,
            workspace=workspace,
            max_age_s=None if max_age is None else parse_duration_s(max_age),
            keep_top=keep_top,
            by=None if by is None else Ranking.parse(by),
        )

    def written(self) -> dict[str, str | int | None]:
        """Return what `parse` makes this rule of."""
        return {
            "experiment": self.experiment,
            "workspace": self.workspace,
            "max_age": None if self.max_age_s is None else duration_text(self.max_age_s),
            "keep_top": self.keep_top,
            "by": None if self.by is None else str(self.by),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupRun:
    """What the decision needs to know of a run that is not deleted.

    Attributes:
        ended_at: None while it is running; the last sign of life of a lost run.
        lost: whether nobody has ended it: it fell silent.
        value: of the rule's metric; None without.
        has_children_elsewhere: whether a run of another experiment is nested in it.
    """

    run_id: UUID
    name: str
    ended_at: datetime | None
    lost: bool
    parent_run_id: UUID | None
    protected: bool
    value: float | None
    has_children_elsewhere: bool


class Keep(StrEnum):
    """Why a run is kept."""

    RUNNING = "running"
    LOST = "lost"
    PROTECTED = "protected"
    YOUNG = "young"
    TOP = "top"
    PARENT = "parent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A run that stays, its reasons, and the same for people."""

    run: CleanupRun
    reasons: tuple[Keep, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupPlan:
    """The decision. `gone` has nested runs before the runs they are nested in."""

    kept: tuple[Kept, ...]
    gone: tuple[CleanupRun, ...]


def plan_cleanup(runs: Sequence[CleanupRun], rule: CleanupRule, *, now: datetime) -> CleanupPlan:
    """Decide."""
    places = _places(runs, rule, now=now)
    reasons: dict[UUID, list[tuple[Keep, str]]] = {run.run_id: [] for run in runs}
    for run in runs:
        reasons[run.run_id] += _own_reasons(run, rule, places.get(run.run_id), now=now)
    by_id = {run.run_id: run for run in runs}
    for run in runs:
        if reasons[run.run_id]:
            _keep_parents(run, by_id, reasons)
    kept = [run for run in runs if reasons[run.run_id]]
    gone = [run for run in runs if not reasons[run.run_id]]
    return CleanupPlan(
        kept=tuple(
            Kept(
                run=run,
                reasons=tuple(reason for reason, _ in reasons[run.run_id]),
                why="; ".join(text for _, text in reasons[run.run_id]),
            )
            for run in kept
        ),
        gone=tuple(sorted(gone, key=lambda run: -_depth(run, by_id))),
    )


def _own_reasons(
    run: CleanupRun, rule: CleanupRule, place: int | None, *, now: datetime
) -> Iterable[tuple[Keep, str]]:
    if run.ended_at is None:
        yield Keep.RUNNING, "it is running"
    elif _goes_on(run, now=now):
        yield Keep.LOST, "it was lost less than a day ago and may come back"
    elif rule.max_age_s is not None and run.ended_at > now - timedelta(seconds=rule.max_age_s):
        yield Keep.YOUNG, f"it ended {_days(now - run.ended_at)} ago"
    if run.protected:
        yield Keep.PROTECTED, "it is protected"
    if place is not None:
        yield Keep.TOP, f"it is number {place} by {rule.by}"
    if run.has_children_elsewhere:
        yield Keep.PARENT, "runs of another experiment are nested in it"


def _goes_on(run: CleanupRun, *, now: datetime) -> bool:
    """Tell whether a run is running, or counts as such."""
    if run.ended_at is None:
        return True
    return run.lost and run.ended_at > now - timedelta(seconds=LOST_KEPT_S)


def _places(runs: Sequence[CleanupRun], rule: CleanupRule, *, now: datetime) -> dict[UUID, int]:
    """Return the places, from 1, of the best runs; ties go to the one that ended first."""
    if rule.by is None:
        return {}
    sign = -1.0 if rule.by.greatest else 1.0
    valued = sorted(
        # Those that go on last among equals; running ones have no time to compare.
        (sign * run.value, _goes_on(run, now=now), run.ended_at or _NEVER, run.run_id)
        for run in runs
        if run.value is not None and not math.isnan(run.value)
    )
    return {run_id: place for place, (*_, run_id) in enumerate(valued[: rule.keep_top], 1)}


def _keep_parents(
    run: CleanupRun, by_id: dict[UUID, CleanupRun], reasons: dict[UUID, list[tuple[Keep, str]]]
) -> None:
    """Keep the runs that a kept one is nested in."""
    child, seen = run, {run.run_id}
    while child.parent_run_id in by_id and child.parent_run_id not in seen:
        parent = by_id[child.parent_run_id]
        seen.add(parent.run_id)
        if all(reason is not Keep.PARENT for reason, _ in reasons[parent.run_id]):
            reasons[parent.run_id].append((Keep.PARENT, f"{child.name} is nested in it"))
        child = parent


def _depth(run: CleanupRun, by_id: dict[UUID, CleanupRun]) -> int:
    depth, seen = 0, {run.run_id}
    while run.parent_run_id in by_id and run.parent_run_id not in seen:
        run = by_id[run.parent_run_id]
        seen.add(run.run_id)
        depth += 1
    return depth


def _days(age: timedelta) -> str:
    return f"{age.days} days" if age.days != 1 else "1 day"
