"""What a read must return, in plain Python: slow, obvious, no numpy, no SQL."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.support.chunks import number_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One stored point."""

    key: str
    rank: int
    attempt: int
    step: int
    time_us: int
    value: float


@dataclass(slots=True, kw_only=True)
class History:
    """All that was ever stored in a run."""

    points: list[Stored] = field(default_factory=list)
    resume_steps: dict[int, int | None] = field(default_factory=dict)
    exempt_keys: set[str] = field(default_factory=set)

    def visible(self, point: Stored) -> bool:
        return point.key in self.exempt_keys or all(
            resume_step is None or point.step < resume_step
            for attempt, resume_step in self.resume_steps.items()
            if attempt > point.attempt
        )


Row = tuple[str, int, int, int, int, float]
"""(key, rank, attempt or 0, step, time in µs, value)."""


def order(point: Stored) -> tuple[int, int, tuple[bool, float]]:
    return point.attempt, point.time_us, number_order(point.value)


def read(
    history: History,
    *,
    policy: str = "LAST",
    aggregation: str | None = None,
    first_step: int | None = None,
    last_step: int | None = None,
    keys: Iterable[str] = (),
    ranks: Iterable[int] = (),
    include_hidden: bool = False,
    attempts_apart: bool = False,
) -> list[Row]:
    keys, ranks = set(keys), set(ranks)
    attempts_apart = attempts_apart or include_hidden
    groups: dict[tuple[str, int, int], dict[int, list[Stored]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for point in history.points:
        if (
            (include_hidden or history.visible(point))
            and (first_step is None or point.step >= first_step)
            and (last_step is None or point.step <= last_step)
            and (not keys or point.key in keys)
            and (not ranks or point.rank in ranks)
        ):
            attempt = point.attempt if attempts_apart else 0
            groups[point.key, point.rank, attempt][point.step].append(point)
    rows: list[Row] = []
    for (key, rank, attempt), steps in groups.items():
        for step, points in steps.items():
            chosen = sorted(points, key=order)
            if policy == "LAST":
                chosen = chosen[-1:]
            elif policy == "FIRST":
                chosen = chosen[:1]
            else:
                chosen = [
                    p for i, p in enumerate(chosen) if not i or order(p) != order(chosen[i - 1])
                ]
            rows += [(key, rank, attempt, step, p.time_us, p.value) for p in chosen]
    if aggregation is not None:
        rows = aggregate(rows, aggregation)
    return sorted(rows, key=lambda row: (row[0].encode(), *row[1:4]))  # stable within a step


def aggregate(rows: list[Row], aggregation: str) -> list[Row]:
    steps: dict[tuple[str, int, int], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row[1]):
        steps[row[0], row[2], row[3]].append(row)
    return [
        (key, -1, attempt, step, max(row[4] for row in ranks), fold(ranks, aggregation))
        for (key, attempt, step), ranks in steps.items()
    ]


def fold(ranks: list[Row], aggregation: str) -> float:
    values = [row[5] for row in ranks]
    numbers = [value for value in values if not math.isnan(value)]
    if aggregation == "MIN":
        return min(numbers, default=math.nan)
    if aggregation == "MAX":
        return max(numbers, default=math.nan)
    total = math.nan if len(numbers) < len(values) else sum(values)
    return total / len(values) if aggregation == "MEAN" else total


def m4(rows: list[Row], max_points: int) -> list[Row]:
    """Down-sample each series; see gateway.domain.downsampling."""
    series: dict[tuple[str, int, int], list[Row]] = defaultdict(list)
    for row in rows:
        series[row[:3]].append(row)
    kept: list[Row] = []
    for points in series.values():
        if len(points) <= max_points:
            kept += points
            continue
        low, high = points[0][3], points[-1][3]
        width = -(-(high - low + 1) // (max_points // 4))
        spans: dict[int, list[int]] = defaultdict(list)
        for i, point in enumerate(points):
            spans[(point[3] - low) // width].append(i)
        chosen: set[int] = set()
        for span in spans.values():
            numbers = [i for i in span if not math.isnan(points[i][5])]
            chosen |= {span[0], span[-1]}
            if numbers:
                chosen.add(min(numbers, key=lambda i: (points[i][5], i)))
                chosen.add(min(numbers, key=lambda i: (-points[i][5], i)))
        kept += [points[i] for i in sorted(chosen)]
    return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What ListSeries must say of a series."""

    point_count: int
    last: tuple[int, int, float]
    min_value: float
    max_value: float


def summaries(history: History) -> dict[tuple[str, int], Summary]:
    found = {}
    for key, rank in {(point.key, point.rank) for point in history.points}:
        seen = [p for p in history.points if (p.key, p.rank) == (key, rank) and history.visible(p)]
        numbers = [p.value for p in seen if not math.isnan(p.value)]
        last = max(seen, key=lambda p: (p.step, p.time_us, number_order(p.value)), default=None)
        found[key, rank] = Summary(
            point_count=len(seen),
            last=(0, 0, math.nan) if last is None else (last.step, last.time_us, last.value),
            min_value=min(numbers, default=math.nan),
            max_value=max(numbers, default=math.nan),
        )
    return found
