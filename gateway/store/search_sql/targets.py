"""What can be searched: tables, their columns, and how a user may call them."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from gateway.domain.filters.syntax import Aggregate, Entity


class Kind(Enum):
    """What an attribute or value is compared with."""

    TEXT = auto()
    NUMBER = auto()
    TIME = auto()
    STATE = auto()
    RUN_ID = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A column of the searched table `r`."""

    sql: str
    kind: Kind
    nullable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is searched.

    Attributes:
        table: aliased `r`.
        id_column: the primary key, which breaks ties.
        attributes: by canonical name.
        names: how attributes may be written, in lower case, to canonical names.
        tables: of keyed entities: table, and whether it repeats experiment_id.
    """

    table: str
    id_column: str
    attributes: dict[str, Attribute]
    names: dict[str, str]
    tables: dict[Entity, tuple[str, bool]]


_RUN_ATTRIBUTES: Final = {
    "run_id": Attribute(sql="r.run_id", kind=Kind.RUN_ID),
    "parent_run_id": Attribute(sql="r.parent_run_id", kind=Kind.RUN_ID, nullable=True),
    "experiment_id": Attribute(sql="r.experiment_id", kind=Kind.NUMBER),
    "name": Attribute(sql="r.name", kind=Kind.TEXT),
    "state": Attribute(sql="r.state", kind=Kind.STATE),
    "start_time": Attribute(sql="r.started_at", kind=Kind.TIME),
    "end_time": Attribute(sql="r.ended_at", kind=Kind.TIME, nullable=True),
    "create_time": Attribute(sql="r.created_at", kind=Kind.TIME),
    "user_name": Attribute(sql="r.user_name", kind=Kind.TEXT),
    "host": Attribute(sql="r.host", kind=Kind.TEXT),
    "git_commit": Attribute(sql="r.git_commit", kind=Kind.TEXT),
    "entry_point": Attribute(sql="r.entry_point", kind=Kind.TEXT),
}

RUNS: Final = Target(
    table="runs",
    id_column="run_id",
    attributes=_RUN_ATTRIBUTES,
    names={
        **{name: name for name in _RUN_ATTRIBUTES},
        # MLflow's names.
        "run_name": "name",
        "run name": "name",
        "status": "state",
        "user_id": "user_name",
        "user": "user_name",
        "created": "start_time",
        "source_name": "entry_point",
    },
    tables={
        Entity.METRIC: ("run_metrics", True),
        Entity.PARAM: ("run_params", True),
        Entity.TAG: ("run_tags", True),
        Entity.SUMMARY: ("run_summary", False),
        Entity.DATASET: ("run_datasets", False),
    },
)

EXPERIMENTS: Final = Target(
    table="experiments",
    id_column="experiment_id",
    attributes={
        "experiment_id": Attribute(sql="r.experiment_id", kind=Kind.NUMBER),
        "name": Attribute(sql="r.name", kind=Kind.TEXT),
        "creation_time": Attribute(sql="r.created_at", kind=Kind.TIME),
        "last_update_time": Attribute(sql="r.updated_at", kind=Kind.TIME),
    },
    names={
        "experiment_id": "experiment_id",
        "name": "name",
        "creation_time": "creation_time",
        "create_time": "creation_time",
        "last_update_time": "last_update_time",
        "update_time": "last_update_time",
    },
    tables={Entity.TAG: ("experiment_tags", False)},
)

METRIC_COLUMNS: Final = {
    Aggregate.LAST: "last_value",
    Aggregate.MIN: "min_value",
    Aggregate.MAX: "max_value",
    Aggregate.STEP: "last_step",
}
PREFIX_CHARACTERS: Final = 128  # of the indexes on params and tags
PAIR_SEPARATOR: Final = "\x1f"  # between key and value in them


def pair_of(alias: str) -> str:
    """Return the expression of the indexes on params and tags."""
    separator = f"chr({ord(PAIR_SEPARATOR)})"
    return f"({alias}.key || {separator} || left({alias}.value, {PREFIX_CHARACTERS}))"
