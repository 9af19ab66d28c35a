"""Compiles a filter to a condition, and collects the bind parameters of its statement."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
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
    Presence,
    Value,
)
from gateway.domain.runs import RunState
from gateway.store.search_sql.targets import (
    METRIC_COLUMNS,
    PAIR_SEPARATOR,
    PREFIX_CHARACTERS,
    Attribute,
    Kind,
    Target,
    pair_of,
)

# What a param or tag must look like to be compared with a number. Short, so that
# the cast cannot overflow.
_NUMERIC: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$"
_NEGATED: Final = {
    Operator.NOT_LIKE: "LIKE",
    Operator.NOT_ILIKE: "ILIKE",
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


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
                column = f"m.{METRIC_COLUMNS[item.aggregate]}"
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
                self.table(item)
                _want_texts(item, values)
                test = self._texts(f"m.{item.key}", expression)  # one of three, by the parser
                return f"EXISTS (SELECT FROM run_datasets m WHERE m.run_id = r.run_id AND {test})"

    def _exists(self, item: Field, test: str) -> str:
        table, scoped = self.table(item)
        narrowed = f" AND {self.scope('m')}" if scoped and self.experiment_ids is not None else ""
        key = self.bind(item.key, "text")
        return (
            f"EXISTS (SELECT FROM {table} m WHERE m.{self.target.id_column} = "
            f"r.{self.target.id_column}{narrowed} AND m.key = {key} AND {test})"
        )

    def table(self, item: Field) -> tuple[str, bool]:
        """Return the table of an entity, and whether it repeats experiment_id."""
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
        table, _ = self.table(item)
        pairs = [f"{item.key}{PAIR_SEPARATOR}{start}" for start in starts]
        pair = pair_of("m")
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
        starts = [str(value)[:PREFIX_CHARACTERS] for value in values]
        scoped = self.table(item)[1]
        # A key with the separator cannot exist, and would be mistaken for another.
        if not equal or not scoped or PAIR_SEPARATOR in item.key:
            return self._exists(item, self._texts("m.value", expression))
        test = self._equal_pairs(item, starts)
        if all(len(start) < PREFIX_CHARACTERS for start in starts):
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
