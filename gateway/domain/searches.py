"""Searches as values: what is looked for, in which order, and where a page begins."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, IntEnum
from typing import Final, TypeAlias
from uuid import UUID

from gateway.domain.filters.syntax import Expression, OrderTerm

PAGE_BYTES_MAX: Final = 1_048_576
"""Bytes of runs or experiments in a page, unless one alone is larger: a quarter of what a gRPC
client receives by default."""

CursorValue: TypeAlias = str | int | float | datetime | UUID | None


class Visibility(IntEnum):
    """Which runs or experiments; the numbers of headrace.v1.Visibility."""

    ACTIVE = 1
    DELETED = 2
    ALL = 3


class Phase(Enum):
    """Which part of an order is read: all at once, or first what has the value of the
    first term and then what has not; see `gateway.store.search_sql`."""

    WHOLE = "w"
    PRESENT = "p"
    MISSING = "m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Behind which row a page begins: its order keys and its id, in its phase.

    Without values: at the beginning of the phase.
    """

    phase: Phase
    values: tuple[CursorValue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSearch:
    """What SearchRuns asks for. No experiment at all means the whole workspace.

    A page ends after `limit` runs, or before the run with which it exceeds `bytes_max`.
    """

    workspace_id: int
    experiment_ids: tuple[int, ...] = ()
    experiments: tuple[str, ...] = ()
    expression: Expression | None = None
    order: tuple[OrderTerm, ...] = ()
    visibility: Visibility = Visibility.ACTIVE
    limit: int = 100
    bytes_max: int = PAGE_BYTES_MAX
    after: Cursor | None = None
    include_data: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentSearch:
    """What SearchExperiments asks for. A page ends as that of a RunSearch does."""

    workspace_id: int
    expression: Expression | None = None
    order: tuple[OrderTerm, ...] = ()
    visibility: Visibility = Visibility.ACTIVE
    limit: int = 100
    bytes_max: int = PAGE_BYTES_MAX
    after: Cursor | None = None
