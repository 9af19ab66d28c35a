"""Searches in plain Python over plain values: what the SQL of the gateway is compared with."""

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.domain.filters.syntax import (
    Aggregate,
    And,
    Comparison,
    Entity,
    Expression,
    Field,
    Membership,
    Not,
    Operator,
    Or,
    OrderTerm,
    Presence,
)

NUMERIC = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class NaiveRun:
    """A run as a test made it."""

    run_id: str
    attributes: dict[str, Any]
    metrics: dict[str, dict[Aggregate, float]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    summary: dict[str, float | str] = field(default_factory=dict)
    datasets: list[dict[str, str]] = field(default_factory=list)

    def values(self, item: Field) -> list[Any]:
        """What the field stands for: nothing, one value, or one of each dataset."""
        found: Any = None
        match item.entity:
            case Entity.ATTRIBUTE:
                found = self.attributes[item.key]
            case Entity.METRIC:
                found = self.metrics.get(item.key, {}).get(item.aggregate)
            case Entity.PARAM:
                found = self.params.get(item.key)
            case Entity.TAG:
                found = self.tags.get(item.key)
            case Entity.SUMMARY:
                found = self.summary.get(item.key)
            case Entity.DATASET:
                return [dataset[item.key] for dataset in self.datasets]
        return [] if found is None else [found]


def matches(run: NaiveRun, expression: Expression | None) -> bool:
    """Whether a run satisfies a filter."""
    match expression:
        case None:
            return True
        case And():
            return all(matches(run, operand) for operand in expression.operands)
        case Or():
            return any(matches(run, operand) for operand in expression.operands)
        case Not():
            return not matches(run, expression.operand)
        case Presence():
            return bool(run.values(expression.field)) == expression.present
        case Membership():
            return any(
                _member(expression, found) != expression.negated
                for found in run.values(expression.field)
                if _comparable(expression.field, found, expression.values[0])
            )
        case Comparison():
            return any(
                _compare(expression, found)
                for found in run.values(expression.field)
                if _comparable(expression.field, found, expression.value)
            )


def ordered(runs: list[NaiveRun], order: tuple[OrderTerm, ...]) -> list[NaiveRun]:
    """Return the runs in order; ties by run id."""
    result = sorted(runs, key=lambda run: run.run_id)
    for term in reversed(order):
        present = [run for run in result if _sort_value(run, term.field) is not None]
        missing = [run for run in result if _sort_value(run, term.field) is None]
        present.sort(key=lambda run: _sort_value(run, term.field), reverse=term.descending)
        result = present + missing
    return result


def _sort_value(run: NaiveRun, item: Field) -> Any:
    found = run.values(item)
    if not found or (isinstance(found[0], float) and math.isnan(found[0])):
        return None
    if item.entity is Entity.SUMMARY and isinstance(found[0], str):
        return None
    if item.entity is Entity.ATTRIBUTE and item.key == "state":
        return ["RUNNING", "FINISHED", "FAILED", "KILLED", "LOST"].index(found[0])
    return found[0]


def _number(found: Any) -> float | int | None:
    if isinstance(found, str):
        return float(found) if len(found) <= 40 and NUMERIC.fullmatch(found) else None
    if isinstance(found, datetime):
        return None
    number: float | int = found
    return None if isinstance(found, float) and math.isnan(found) else number


def _comparable(item: Field, found: Any, value: Any) -> bool:
    if isinstance(found, datetime):
        return True
    if item.entity is Entity.SUMMARY and isinstance(found, str) != isinstance(value, str):
        return False  # a summary value is a number or a text; a param is read as either
    if isinstance(value, str):
        return isinstance(found, str)
    return _number(found) is not None


def _like(pattern: str, text: str, *, fold: bool) -> bool:
    pieces = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            pieces.append(re.escape(next(characters)))
        else:
            pieces.append({"%": ".*", "_": "."}.get(character, re.escape(character)))
    flags = re.DOTALL | (re.IGNORECASE if fold else 0)
    return re.fullmatch("".join(pieces), text, flags) is not None


def _time(value: Any) -> datetime:
    if isinstance(value, str):
        found = datetime.fromisoformat(value)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return EPOCH + timedelta(milliseconds=value)


def _member(expression: Membership, found: Any) -> bool:
    if isinstance(found, datetime):
        return found in [_time(value) for value in expression.values]
    if isinstance(expression.values[0], str):
        return found in _texts(expression.field, expression.values)
    return _number(found) in expression.values


def _texts(item: Field, values: tuple[Any, ...]) -> tuple[Any, ...]:
    if item.entity is Entity.ATTRIBUTE and item.key == "state":
        return tuple(value.upper() for value in values)
    return values


def _compare(expression: Comparison, found: Any) -> bool:
    operator, value = expression.operator, expression.value
    if operator in (Operator.LIKE, Operator.NOT_LIKE):
        return _like(str(value), found, fold=False) == (operator is Operator.LIKE)
    if operator in (Operator.ILIKE, Operator.NOT_ILIKE):
        return _like(str(value), found, fold=True) == (operator is Operator.ILIKE)
    left: Any
    right: Any
    if isinstance(found, datetime):
        left, right = found, _time(value)
    elif isinstance(value, str):
        left, right = found, _texts(expression.field, (value,))[0]
    else:
        left, right = _number(found), value
    answers: dict[Operator, bool] = {
        Operator.EQUAL: left == right,
        Operator.NOT_EQUAL: left != right,
        Operator.LESS: left < right,
        Operator.LESS_OR_EQUAL: left <= right,
        Operator.GREATER: left > right,
        Operator.GREATER_OR_EQUAL: left >= right,
    }
    return answers[operator]
