"""The syntax tree of filters and orders. Values; `str()` of a node is its canonical text.

Reading the canonical text gives an equal tree (a property test holds it to that).

Meaning. A filter is two-valued: a comparison with something that a run does not
have is false, whatever the operator, and NOT of it is true. NaN is a value that a
metric has (IS NULL is false) and that no comparison matches. Orders put what is
missing, and NaN, last in both directions.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

Value: TypeAlias = str | int | float


class Entity(Enum):
    """What a field is of; the value is how it is written."""

    ATTRIBUTE = "attributes"
    METRIC = "metrics"
    PARAM = "params"
    TAG = "tags"
    SUMMARY = "summary"
    DATASET = "datasets"


class Aggregate(Enum):
    """Which number of a metric; LAST is meant when none is written."""

    LAST = "last"
    MIN = "min"
    MAX = "max"
    STEP = "step"


class Operator(Enum):
    """How a field and a value are compared."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="
    LIKE = "LIKE"
    ILIKE = "ILIKE"
    NOT_LIKE = "NOT LIKE"
    NOT_ILIKE = "NOT ILIKE"


PATTERN_OPERATORS: Final = frozenset(
    {Operator.LIKE, Operator.ILIKE, Operator.NOT_LIKE, Operator.NOT_ILIKE}
)

_PLAIN_KEY: Final = re.compile(r"[\w/-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Something of a run or an experiment.

    Attributes:
        entity: what it is of.
        key: the metric's, param's or tag's key; the attribute's canonical name.
        aggregate: of metrics only; LAST otherwise.
        column: where it stands in the text, from 1; no part of its identity.
    """

    entity: Entity
    key: str
    aggregate: Aggregate = Aggregate.LAST
    column: int = field(default=1, compare=False)

    def __str__(self) -> str:
        key = self.key
        if not _PLAIN_KEY.fullmatch(key):
            escaped = key.replace("`", "``")
            key = f"`{escaped}`"
        suffix = "" if self.aggregate is Aggregate.LAST else f".{self.aggregate.value}"
        return f"{self.entity.value}.{key}{suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`field operator value`; the value of a pattern operator is text."""

    field: Field
    operator: Operator
    value: Value

    def __str__(self) -> str:
        return f"{self.field} {self.operator.value} {_value_text(self.value)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """`field [NOT] IN (values)`; the values are all text or all numbers, at least one."""

    field: Field
    values: tuple[Value, ...]
    negated: bool = False

    def __str__(self) -> str:
        listed = ", ".join(map(_value_text, self.values))
        return f"{self.field} {'NOT ' if self.negated else ''}IN ({listed})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """`field IS [NOT] NULL`."""

    field: Field
    present: bool

    def __str__(self) -> str:
        return f"{self.field} IS {'NOT ' if self.present else ''}NULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Not:
    """The opposite."""

    operand: "Expression"

    def __str__(self) -> str:
        return f"NOT {_enclosed(self.operand)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class And:
    """All of them; at least two."""

    operands: "tuple[Expression, ...]"

    def __str__(self) -> str:
        return " AND ".join(map(_enclosed, self.operands))


@dataclass(frozen=True, slots=True, kw_only=True)
class Or:
    """Any of them; at least two."""

    operands: "tuple[Expression, ...]"

    def __str__(self) -> str:
        return " OR ".join(
            _enclosed(operand) if isinstance(operand, Or) else str(operand)
            for operand in self.operands
        )


Expression: TypeAlias = Comparison | Membership | Presence | Not | And | Or


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderTerm:
    """One term of an order."""

    field: Field
    descending: bool = False

    def __str__(self) -> str:
        return f"{self.field} {'DESC' if self.descending else 'ASC'}"


def _enclosed(expression: "Expression") -> str:
    return f"({expression})" if isinstance(expression, And | Or) else str(expression)


def _value_text(value: Value) -> str:
    if isinstance(value, str):
        escaped = value.replace("'", "''")
        return f"'{escaped}'"
    return repr(value)
