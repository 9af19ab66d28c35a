"""The cases as values: read from clients/scenarios, given fresh ids, and what they store."""

import copy
import json
import math
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.conformance.clients import CLIENTS

SCENARIOS: Final = CLIENTS / "scenarios"
SCHEMA: Final = SCENARIOS / "scenario.schema.json"

SeriesKey: TypeAlias = tuple[str, str, int, int]
"""Run id, key, rank, attempt."""

Points: TypeAlias = NDArray[Any]
"""Rows (step, value), int64 and float64, sorted."""

POINT: Final = np.dtype([("step", "<i8"), ("value", "<f8")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One scenario; `document` is the file's content."""

    name: str
    document: dict[str, Any]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What the runner does, in order."""
        steps: list[dict[str, Any]] = self.document["steps"]
        return steps

    @property
    def features(self) -> frozenset[str]:
        """What a client must have to be asked."""
        return frozenset(self.document.get("features", []))

    def wants(self, what: str) -> bool:
        """Whether the gateway needs `auth`, `tls` or `s3` for it."""
        return bool(self.document.get("gateway", {}).get(what))

    def with_fresh_ids(self) -> "Case":
        """Return a copy whose `@names` are new ids, equal names equal ids."""
        ids: defaultdict[str, str] = defaultdict(lambda: uuid.uuid4().hex)

        def replaced(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: replaced(element) for key, element in value.items()}
            if isinstance(value, list):
                return [replaced(element) for element in value]
            if isinstance(value, str) and value.startswith("@"):
                return ids[value]
            return value

        return Case(name=self.name, document=replaced(copy.deepcopy(self.document)))

    def stored_points(self) -> dict[SeriesKey, Points]:
        """Return every point that must be stored, and with it that no other may be."""
        pieces: defaultdict[SeriesKey, list[Points]] = defaultdict(list)
        writers: dict[str, dict[str, Any]] = {}
        for step in self.steps:
            if step["do"] == "open_writer":
                writers[step["writer"]] = step
            elif step["do"] == "log":
                writer = writers[step["writer"]]
                of = (writer["run_id"], writer.get("rank", 0), writer.get("attempt", 1))
                for key, points in _logged(step):
                    if len(points):
                        pieces[of[0], key, of[1], of[2]].append(points)
        return {key: in_order(np.concatenate(parts)) for key, parts in pieces.items()}

    def run_ids(self) -> set[str]:
        """Return the runs that writers of the case write to."""
        return {step["run_id"] for step in self.steps if step["do"] == "open_writer"}


def all_cases() -> list[Case]:
    """Read the cases, by name."""
    return [
        read_case(path) for path in sorted(SCENARIOS.glob("*.json")) if path.name != SCHEMA.name
    ]


def read_case(path: Path) -> Case:
    """Read one case."""
    return Case(name=path.stem, document=json.loads(path.read_text(encoding="utf-8")))


def in_order(points: Points) -> Points:
    """Sort by step, then value, NaN last."""
    ordered: Points = points[np.lexsort((points["value"], points["step"]))]
    return ordered


def number(value: float | str) -> float:
    """Return a value as JSON spells it: a number, NaN, Infinity or -Infinity."""
    return math.nan if value == "NaN" else float(value)


def _logged(step: dict[str, Any]) -> Iterator[tuple[str, Points]]:
    """Yield what of a `log` step is stored, by key."""
    stored = step.get("stored")
    if stored is False:
        return
    if "points" in step:
        columns: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for position, values in step["points"][:stored]:
            for key, value in values.items():
                columns[key].append((position, number(value)))
        for key, rows in columns.items():
            yield key, np.array(rows, POINT)
        return
    keys = step["keys"]
    names = [f"key/{index}" for index in range(keys)] if isinstance(keys, int) else keys
    count = step["count"] if stored is None else stored
    for index, key in enumerate(names):
        points = np.empty(count, POINT)
        points["step"] = step["first_step"] + np.arange(count)
        points["value"] = points["step"] + index / 8
        yield key, points
