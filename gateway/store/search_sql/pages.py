"""Compiles an order, and the statement of one page.

A page is found by its keyset, never by an offset: the WHERE clause repeats the
order's keys of the last row before. The first term of an order on a metric, param,
tag or summary value is read in two phases, since only so the order of an index can
be used: first those that have the value, then those that do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.domain.filters.parsing import invalid
from gateway.domain.filters.syntax import Aggregate, Entity, Expression, Field, OrderTerm
from gateway.domain.searches import CursorValue, Phase
from gateway.store.search_sql.conditions import Compiler
from gateway.store.search_sql.targets import (
    METRIC_COLUMNS,
    PAIR_SEPARATOR,
    PREFIX_CHARACTERS,
    RUNS,
    Kind,
    pair_of,
)


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
    table, scoped = compiler.table(item)
    alias = f"o{number}"
    first = inner and number == 0
    narrowed = f" AND {compiler.scope(alias)}" if scoped and first else ""
    column, cast = _value_column(item, alias)
    pair = pair_prefix = ""
    if narrowed and item.entity in (Entity.PARAM, Entity.TAG) and PAIR_SEPARATOR not in item.key:
        pair, pair_prefix = pair_of(alias), item.key + PAIR_SEPARATOR
        after = item.key + chr(ord(PAIR_SEPARATOR) + 1)
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


def _value_column(item: Field, alias: str) -> tuple[str, str]:
    if item.entity is Entity.METRIC:
        cast = "bigint" if item.aggregate is Aggregate.STEP else "float8"
        return f"{alias}.{METRIC_COLUMNS[item.aggregate]}", cast
    if item.entity is Entity.SUMMARY:
        return f"{alias}.number", "float8"
    return f"{alias}.value", "text"


def _value_present(item: Field, alias: str) -> str:
    column, cast = _value_column(item, alias)
    return f"{column} <> 'NaN'" if cast == "float8" else "TRUE"


def _has_value(compiler: Compiler, item: Field) -> str:
    table, _ = compiler.table(item)
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
            start = keys[0].pair_prefix + str(values[0])[:PREFIX_CHARACTERS]
            column, place = keys[0].pair, compiler.bind(start, "text")
        else:
            column, place = keys[0].sql, compiler.bind(values[0], keys[0].cast)
        condition = f"({column} {'<=' if keys[0].descending else '>='} {place} AND {condition})"
    return condition
