"""Whether a replay did what its case says: pure comparisons, each difference one line."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tests.conformance.cases import Case, Points, SeriesKey, number


def differences(expected: Any, found: Any, place: str) -> Iterator[str]:
    """Compare partially: a mapping may hold more than expected, everything else is equal."""
    if isinstance(expected, dict):
        if expected.get("any"):
            return
        if "at_least" in expected or "at_most" in expected:
            low, high = expected.get("at_least", -math.inf), expected.get("at_most", math.inf)
            if not isinstance(found, int | float) or not low <= found <= high:
                yield f"{place} is {found}; expected {expected}"
            return
        if not isinstance(found, dict):
            yield f"{place} is {_brief(found)}; expected {_brief(expected)}"
            return
        for key, value in expected.items():
            yield from differences(value, found.get(key), f"{place}.{key}")
    elif isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            yield f"{place} is {_brief(found)}; expected {_brief(expected)}"
            return
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{place}[{index}]")
    elif not _equal(expected, found):
        yield f"{place} is {_brief(found)}; expected {_brief(expected)}"


def outcome_differences(
    case: Case, result: Mapping[str, Any], silent: frozenset[str]
) -> Iterator[str]:
    """Compare the outcomes of the steps and the reports of the writers."""
    outcomes = result.get("steps", [])
    if len(outcomes) != len(case.steps):
        yield f"{len(outcomes)} outcomes for {len(case.steps)} steps"
    for index, (step, outcome) in enumerate(zip(case.steps, outcomes, strict=False)):
        expected = {"error": None, **step.get("expect", {})}
        expected = {key: value for key, value in expected.items() if key not in silent}
        yield from differences(expected, outcome, f"step {index} ({step['do']})")
    reports = result.get("writers", {})
    for name, report in case.document.get("expect", {}).get("writers", {}).items():
        found = dict(reports.get(name, {}))
        rejections = found.get("rejections") or []
        found["reasons"] = sorted({rejection["reason"] for rejection in rejections})
        found["unstored_points"] = found.get("refused_points", 0) + found.get("counters", {}).get(
            "rejected_points", 0
        )
        told = {key: value for key, value in report.items() if key not in silent}
        yield from differences(told, found, f"writer {name}")


def stored_differences(
    expected: Mapping[SeriesKey, Points], found: Mapping[SeriesKey, Points]
) -> Iterator[str]:
    """Compare stored points with those that must be stored: each once, no other."""
    for key in sorted(expected.keys() | found.keys()):
        empty = np.empty(0, next(iter([*expected.values(), *found.values()])).dtype)
        one, other = expected.get(key, empty), found.get(key, empty)
        where = f"stored {key[1][:40]!r} rank {key[2]} attempt {key[3]}"
        if len(one) != len(other):
            yield f"{where}: {len(other)} points; expected {len(one)}"
        elif not np.array_equal(one["step"], other["step"]):
            yield f"{where}: other steps than were logged"
        elif not np.array_equal(one["value"], other["value"], equal_nan=True):
            yield f"{where}: other values than were logged"


def _equal(expected: Any, found: Any) -> bool:
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None:
        return expected is found
    if isinstance(expected, int | float) or expected in ("NaN", "Infinity", "-Infinity"):
        try:
            one, other = number(expected), number(found)
        except (TypeError, ValueError):
            return False
        return one == other or (math.isnan(one) and math.isnan(other))
    return bool(expected == found)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:300] + "…"
