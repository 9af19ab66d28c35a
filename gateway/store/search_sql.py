"""Compiles filters and orders to parametrised SQL.

The one place of the gateway where SQL is put together from pieces; all other SQL
stands in queries/*.sql. What a user wrote reaches PostgreSQL as bind parameters
only: keys, values and cursors are `$n`, and the pieces of text are constants of
this module.

A page is found by its keyset, never by an offset: the WHERE clause repeats the
order's keys of the last row before. The first term of an order on a metric, param,
tag or summary value is read in two phases, since only so the order of an index can
be used: first those that have the value, then those that do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, auto
from typing import Final
from uuid import UUID

from gateway.domain.errors import HeadraceError
from gateway.domain.filters.parsing import invalid
from gateway.domain.filters.syntax import (
    PATTERN_OPERATORS,
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
    Value,
)
from gateway.domain.runs import RunState
from gateway.domain.searches import CursorValue, Phase


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

_METRIC_COLUMNS: Final = {
    Aggregate.LAST: "last_value",
    Aggregate.MIN: "min_value",
    Aggregate.MAX: "max_value",
    Aggregate.STEP: "last_step",
}
# What a param or tag must look like to be compared with a number. Short, so that
# the cast cannot overflow.
_NUMERIC: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$"
_NEGATED: Final = {
    Operator.NOT_LIKE: "LIKE",
    Operator.NOT_ILIKE: "ILIKE",
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PREFIX_CHARACTERS: Final = 128  # of the indexes on params and tags
_PAIR_SEPARATOR: Final = "\x1f"  # between key and value in them


@dataclass(slots=True, kw_only=True)
class Compiler:
    """Compiles for one statement; collects its bind parameters.

    Attributes:
        scope: the parameter with the experiment ids, and whether it is a single
            one; empty when nothing is to be narrowed by it.
        arguments: the bind parameters so far.
    """

    target: Target
    experiment_ids: Sequence[int] | None
    arguments: list[object] = field(default_factory=list)
    _scope: str = ""

    def bind(self, value: object, cast: str) -> str:
        """Return the placeholder of a new bind parameter."""
        self.arguments.append(value)
        return f"${len(self.arguments)}::{cast}"

    def scope(self, alias: str) -> str:
        """Return the condition that a row is of the searched experiments."""
        if self.experiment_ids is None:
            return "TRUE"
        if not self._scope:
            if len(self.experiment_ids) == 1:
                # Equality, not ANY: only then an index below it keeps its order.
                self._scope = "= " + self.bind(self.experiment_ids[0], "bigint")
            else:
                self._scope = "= ANY (" + self.bind(list(self.experiment_ids), "bigint[]") + ")"
        return f"{alias}.experiment_id {self._scope}"

    # -- filters --------------------------------------------------------------

    def condition(self, expression: Expression) -> str:
        """Return a condition on `r`; never NULL."""
        match expression:
            case And():
                return "(" + " AND ".join(map(self.condition, expression.operands)) + ")"
            case Or():
                return "(" + " OR ".join(map(self.condition, expression.operands)) + ")"
            case Not():
                return f"(NOT {self.condition(expression.operand)})"
            case Comparison() | Membership():
                return self._comparison(expression)
            case Presence():
                return self._presence(expression)

    def _presence(self, expression: Presence) -> str:
        item = expression.field
        if item.entity is Entity.ATTRIBUTE:
            attribute = self.target.attributes[item.key]
            if not attribute.nullable:
                return "TRUE" if expression.present else "FALSE"
            return f"({attribute.sql} IS {'NOT ' if expression.present else ''}NULL)"
        if item.entity is Entity.DATASET:
            exists = "EXISTS (SELECT FROM run_datasets m WHERE m.run_id = r.run_id)"
        else:
            exists = self._exists(item, "TRUE")
        return exists if expression.present else f"(NOT {exists})"

    def _comparison(self, expression: Comparison | Membership) -> str:
        item = expression.field
        values = expression.values if isinstance(expression, Membership) else (expression.value,)
        match item.entity:
            case Entity.ATTRIBUTE:
                return self._attribute(expression, self.target.attributes[item.key])
            case Entity.METRIC:
                _want_numbers(item, values)
                column = f"m.{_METRIC_COLUMNS[item.aggregate]}"
                test = self._numbers(column, expression)
                if item.aggregate is not Aggregate.STEP:
                    test = f"{column} <> 'NaN' AND {test}"
                return self._exists(item, test)
            case Entity.PARAM | Entity.TAG:
                return self._param_or_tag(expression)
            case Entity.SUMMARY:
                if isinstance(values[0], str):
                    return self._exists(
                        item, f"coalesce({self._texts('m.text', expression)}, FALSE)"
                    )
                test = self._numbers("m.number", expression)
                return self._exists(item, f"coalesce(m.number <> 'NaN' AND {test}, FALSE)")
            case Entity.DATASET:
                self._table(item)
                _want_texts(item, values)
                test = self._texts(f"m.{item.key}", expression)  # one of three, by the parser
                return f"EXISTS (SELECT FROM run_datasets m WHERE m.run_id = r.run_id AND {test})"

    def _exists(self, item: Field, test: str) -> str:
        table, scoped = self._table(item)
        narrowed = f" AND {self.scope('m')}" if scoped and self.experiment_ids is not None else ""
        key = self.bind(item.key, "text")
        return (
            f"EXISTS (SELECT FROM {table} m WHERE m.{self.target.id_column} = "
            f"r.{self.target.id_column}{narrowed} AND m.key = {key} AND {test})"
        )

    def _table(self, item: Field) -> tuple[str, bool]:
        found = self.target.tables.get(item.entity)
        if found is None:
            raise invalid(f"{item.entity.value} cannot be searched here", item.column)
        return found

    def _attribute(self, expression: Comparison | Membership, attribute: Attribute) -> str:
        item = expression.field
        values = expression.values if isinstance(expression, Membership) else (expression.value,)
        match attribute.kind:
            case Kind.TEXT:
                _want_texts(item, values)
                return self._texts(f'{attribute.sql} COLLATE "C"', expression)
            case Kind.NUMBER:
                _want_numbers(item, values)
                return self._numbers(attribute.sql, expression)
            case Kind.TIME:
                times = [_time(item, value) for value in values]
                test = self._ordered(attribute.sql, expression, times, "timestamptz")
                return f"coalesce({test}, FALSE)" if attribute.nullable else test
            case Kind.STATE:
                _want_texts(item, values)
                return self._states(expression)
            case Kind.RUN_ID:
                _want_texts(item, values)
                return self._run_ids(attribute, expression)

    def _states(self, expression: Comparison | Membership) -> str:
        names = "(ARRAY['RUNNING','FINISHED','FAILED','KILLED','LOST'])[r.state]"
        if isinstance(expression, Comparison) and expression.operator in PATTERN_OPERATORS:
            return self._texts(names, expression)
        values = expression.values if isinstance(expression, Membership) else (expression.value,)
        states = []
        for value in values:
            name = str(value).upper()
            # MLflow calls a run that is not heard of yet SCHEDULED: there is none.
            if name not in RunState.__members__ and name != "SCHEDULED":
                known = ", ".join(RunState.__members__)
                raise invalid(
                    f"there is no state {value!r}; there are {known}", expression.field.column
                )
            states.append(int(RunState[name]) if name != "SCHEDULED" else 0)
        if isinstance(expression, Comparison) and expression.operator not in (
            Operator.EQUAL,
            Operator.NOT_EQUAL,
        ):
            raise invalid("a state is compared by =, !=, IN and LIKE", expression.field.column)
        return self._ordered("r.state", expression, states, "smallint")

    def _run_ids(self, attribute: Attribute, expression: Comparison | Membership) -> str:
        equal = isinstance(expression, Membership) or expression.operator is Operator.EQUAL
        negated = isinstance(expression, Membership) and expression.negated
        if equal and not negated:
            values = (
                expression.values if isinstance(expression, Membership) else (expression.value,)
            )
            ids = [found for value in values if (found := _uuid(str(value))) is not None]
            test = f"{attribute.sql} = ANY ({self.bind(ids, 'uuid[]')})"
        else:
            text = f"replace({attribute.sql}::text, '-', '') COLLATE \"C\""
            test = self._texts(text, expression)
        return f"coalesce({test}, FALSE)" if attribute.nullable else test

    # -- tests of one column --------------------------------------------------

    def _equal_pairs(self, item: Field, starts: Sequence[str]) -> str:
        """Return a test by the index of pairs: key and beginning of value as one text.

        It stands for the key's test too: the planner would count both.
        """
        table, _ = self._table(item)
        pairs = [f"{item.key}{_PAIR_SEPARATOR}{start}" for start in starts]
        pair = _pair("m")
        if len(pairs) == 1:
            test = f"{pair} = {self.bind(pairs[0], 'text')}"
        else:
            test = f"{pair} = ANY ({self.bind(pairs, 'text[]')})"
        return (
            f"EXISTS (SELECT FROM {table} m WHERE m.run_id = r.run_id "
            f"AND {self.scope('m')} AND {test})"
        )

    def _param_or_tag(self, expression: Comparison | Membership) -> str:
        item = expression.field
        values = expression.values if isinstance(expression, Membership) else (expression.value,)
        if not isinstance(values[0], str):
            number = (
                f"CASE WHEN length(m.value) <= 40 AND m.value ~ '{_NUMERIC}' "
                "THEN m.value::float8 END"
            )
            return self._exists(item, f"coalesce({self._numbers(number, expression)}, FALSE)")
        if isinstance(expression, Membership):
            equal = not expression.negated
        else:
            equal = expression.operator is Operator.EQUAL
        starts = [str(value)[:_PREFIX_CHARACTERS] for value in values]
        scoped = self._table(item)[1]
        # A key with the separator cannot exist, and would be mistaken for another.
        if not equal or not scoped or _PAIR_SEPARATOR in item.key:
            return self._exists(item, self._texts("m.value", expression))
        test = self._equal_pairs(item, starts)
        if all(len(start) < _PREFIX_CHARACTERS for start in starts):
            return test
        return f"({test} AND {self._exists(item, self._texts('m.value', expression))})"

    def _texts(self, column: str, expression: Comparison | Membership) -> str:
        if isinstance(expression, Comparison) and expression.operator in PATTERN_OPERATORS:
            pattern = str(expression.value)
            if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
                raise invalid("the pattern ends in a lone backslash", expression.field.column)
            keyword = _NEGATED.get(expression.operator, expression.operator.value)
            test = f"{column} {keyword} {self.bind(pattern, 'text')}"
            return f"NOT ({test})" if expression.operator in _NEGATED else test
        values = expression.values if isinstance(expression, Membership) else (expression.value,)
        return self._ordered(column, expression, list(map(str, values)), "text")

    def _numbers(self, column: str, expression: Comparison | Membership) -> str:
        item = expression.field
        if isinstance(expression, Comparison) and expression.operator in PATTERN_OPERATORS:
            raise invalid(f"{item} is a number: it has no LIKE", item.column)
        values = expression.values if isinstance(expression, Membership) else (expression.value,)
        # An integer column against float8 would round; numeric is exact for both.
        exact = column in ("m.last_step", "r.experiment_id")
        if exact:
            column = f"{column}::numeric"
            return self._ordered(column, expression, [_exact(v) for v in values], "numeric")
        return self._ordered(column, expression, [float(v) for v in values], "float8")

    def _ordered(
        self,
        column: str,
        expression: Comparison | Membership,
        values: Sequence[object],
        cast: str,
    ) -> str:
        if isinstance(expression, Membership):
            test = f"{column} = ANY ({self.bind(list(values), cast + '[]')})"
            return f"NOT ({test})" if expression.negated else test
        operator = "<>" if expression.operator is Operator.NOT_EQUAL else expression.operator.value
        if expression.operator in PATTERN_OPERATORS:
            raise invalid(f"{expression.field} has no LIKE", expression.field.column)
        return f"{column} {operator} {self.bind(values[0], cast)}"


# -- orders -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """One key of an order: its expression, its direction and its type.

    Attributes:
        pair: of a param or tag, the expression of the index of pairs. It orders as
            the value does, up to the 128 characters that it has of it.
        pair_prefix: what the pairs of the key begin with.
    """

    sql: str
    descending: bool
    nullable: bool
    cast: str
    pair: str = ""
    pair_prefix: str = ""

    @property
    def order(self) -> str:
        """The key in ORDER BY."""
        direction = "DESC" if self.descending else "ASC"
        pair = f"{self.pair} {direction}, " if self.pair else ""
        return f"{pair}{self.sql} {direction}{' NULLS LAST' if self.nullable else ''}"


def phases(order: Sequence[OrderTerm]) -> tuple[Phase, ...]:
    """Return the phases of an order, in the order in which they are read."""
    if order and order[0].field.entity is not Entity.ATTRIBUTE:
        return (Phase.PRESENT, Phase.MISSING)
    return (Phase.WHOLE,)


def compile_page(
    compiler: Compiler,
    *,
    restriction: str,
    expression: Expression | None,
    order: Sequence[OrderTerm],
    phase: Phase,
    after: Sequence[CursorValue] | None,
    limit: int,
) -> str:
    """Return the statement of one page, in one phase.

    It selects the id as `id` and the order's keys as `k0`, `k1`, …: what `after`
    of the next page is made of.

    Args:
        compiler: fresh; holds the bind parameters afterwards.
        restriction: a constant condition on `r`.
        expression: the filter.
        order: its terms; ties are broken by the id.
        phase: one of `phases(order)`.
        after: the keys and the id of the last row before; None for the first page.
        limit: rows.
    """
    target = compiler.target
    joins: list[str] = []
    where = [compiler.scope("r"), restriction]
    keys: list[_Key] = []
    for number, term in enumerate(order):
        if number == 0 and phase is Phase.MISSING:
            where.append(f"(NOT {_has_value(compiler, term.field)})")
            continue
        keys.append(_order_key(compiler, term, number, joins, inner=phase is Phase.PRESENT))
    if expression is not None:
        where.append(compiler.condition(expression))
    # Where the first key is another table's, its id: then the index has both.
    tie = f"o0.{target.id_column}" if phase is Phase.PRESENT else f"r.{target.id_column}"
    id_cast = "uuid" if target is RUNS else "bigint"
    if after is not None:
        where.append(_keyset(compiler, keys, tie, id_cast, after))
    selected = "".join(f", {key.sql} AS k{number}" for number, key in enumerate(keys))
    ordered = "".join(f"{key.order}, " for key in keys)
    return (
        f"SELECT r.{target.id_column} AS id{selected} FROM {target.table} r {' '.join(joins)} "
        f"WHERE {' AND '.join(where)} ORDER BY {ordered}{tie} "
        f"LIMIT {compiler.bind(limit, 'bigint')}"
    )


def _order_key(
    compiler: Compiler, term: OrderTerm, number: int, joins: list[str], *, inner: bool
) -> _Key:
    item = term.field
    if item.entity is Entity.ATTRIBUTE:
        attribute = compiler.target.attributes[item.key]
        sql, cast = {
            Kind.TEXT: (f'{attribute.sql} COLLATE "C"', "text"),
            Kind.NUMBER: (attribute.sql, "bigint"),
            Kind.TIME: (attribute.sql, "timestamptz"),
            Kind.STATE: (attribute.sql, "smallint"),
            Kind.RUN_ID: (attribute.sql, "uuid"),
        }[attribute.kind]
        return _Key(sql=sql, descending=term.descending, nullable=attribute.nullable, cast=cast)
    if item.entity is Entity.DATASET:
        raise invalid("runs cannot be ordered by datasets", item.column, field="order_by")
    table, scoped = compiler._table(item)
    alias = f"o{number}"
    first = inner and number == 0
    narrowed = f" AND {compiler.scope(alias)}" if scoped and first else ""
    column, cast = _value_column(item, alias)
    pair = pair_prefix = ""
    if narrowed and item.entity in (Entity.PARAM, Entity.TAG) and _PAIR_SEPARATOR not in item.key:
        pair, pair_prefix = _pair(alias), item.key + _PAIR_SEPARATOR
        after = item.key + chr(ord(_PAIR_SEPARATOR) + 1)
        of_key = (
            f"{pair} >= {compiler.bind(pair_prefix, 'text')} "
            f"AND {pair} < {compiler.bind(after, 'text')}"
        )
    else:
        of_key = f"{alias}.key = {compiler.bind(item.key, 'text')}"
    joins.append(
        f"{'JOIN' if first else 'LEFT JOIN'} {table} {alias} ON "
        f"{alias}.{compiler.target.id_column} = r.{compiler.target.id_column}{narrowed} "
        f"AND {of_key} AND {_value_present(item, alias)}"
    )
    return _Key(
        sql=column,
        descending=term.descending,
        nullable=not first,
        cast=cast,
        pair=pair,
        pair_prefix=pair_prefix,
    )


def _pair(alias: str) -> str:
    """Return the expression of the indexes on params and tags."""
    separator = f"chr({ord(_PAIR_SEPARATOR)})"
    return f"({alias}.key || {separator} || left({alias}.value, {_PREFIX_CHARACTERS}))"


def _value_column(item: Field, alias: str) -> tuple[str, str]:
    if item.entity is Entity.METRIC:
        cast = "bigint" if item.aggregate is Aggregate.STEP else "float8"
        return f"{alias}.{_METRIC_COLUMNS[item.aggregate]}", cast
    if item.entity is Entity.SUMMARY:
        return f"{alias}.number", "float8"
    return f"{alias}.value", "text"


def _value_present(item: Field, alias: str) -> str:
    column, cast = _value_column(item, alias)
    return f"{column} <> 'NaN'" if cast == "float8" else "TRUE"


def _has_value(compiler: Compiler, item: Field) -> str:
    table, _ = compiler._table(item)
    identity = compiler.target.id_column
    return (
        f"EXISTS (SELECT FROM {table} m WHERE m.{identity} = r.{identity} "
        f"AND m.key = {compiler.bind(item.key, 'text')} AND {_value_present(item, 'm')})"
    )


def _keyset(
    compiler: Compiler,
    keys: Sequence[_Key],
    tie: str,
    id_cast: str,
    after: Sequence[CursorValue],
) -> str:
    """Return the condition that a row comes after the one with these keys and id."""
    *values, last_id = after
    condition = f"{tie} > {compiler.bind(last_id, id_cast)}"
    for key, value in reversed(list(zip(keys, values, strict=True))):
        if value is None:
            # Missing values come last: nothing is behind them but further ties.
            condition = f"({key.sql} IS NULL AND {condition})"
            continue
        place = compiler.bind(value, key.cast)
        further = f"{key.sql} {'<' if key.descending else '>'} {place}"
        if key.nullable:
            further = f"({further} OR {key.sql} IS NULL)"
        condition = f"({further} OR ({key.sql} = {place} AND {condition}))"
    if keys and values[0] is not None and not keys[0].nullable:
        # Says nothing new, but an index can begin there.
        if keys[0].pair:
            start = keys[0].pair_prefix + str(values[0])[:_PREFIX_CHARACTERS]
            column, place = keys[0].pair, compiler.bind(start, "text")
        else:
            column, place = keys[0].sql, compiler.bind(values[0], keys[0].cast)
        condition = f"({column} {'<=' if keys[0].descending else '>='} {place} AND {condition})"
    return condition


# -- values -------------------------------------------------------------------


def _want_numbers(item: Field, values: Sequence[Value]) -> None:
    if any(isinstance(value, str) for value in values):
        raise invalid(f"{item} is a number: compare it with a number", item.column)


def _want_texts(item: Field, values: Sequence[Value]) -> None:
    if not all(isinstance(value, str) for value in values):
        raise invalid(f"{item} is text: put the value into quotation marks", item.column)


def _time(item: Field, value: Value) -> datetime:
    """Return a time: milliseconds since 1970 as in MLflow, or ISO 8601 text (UTC by default)."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        return _EPOCH + timedelta(milliseconds=value)
    except (ValueError, OverflowError):
        raise _bad_time(item, value) from None


def _bad_time(item: Field, value: Value) -> HeadraceError:
    return invalid(
        f"{item} is a time: milliseconds since 1970, or text as '2026-01-31T12:00:00Z', "
        f"not {value!r}",
        item.column,
    )


def _exact(value: Value) -> Decimal:
    return Decimal(value)


def _uuid(text: str) -> UUID | None:
    if len(text) != 32 or text != text.lower():
        return None
    try:
        return UUID(hex=text)
    except ValueError:
        return None
