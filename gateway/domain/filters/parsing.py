"""Reads filters and orders into syntax trees; every error points at a column of the text.

Bounded: the length of the text, the number of comparisons and the depth of the
tree have limits, so that no text makes the compiler recurse or PostgreSQL plan
for long.
"""

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final, NoReturn

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, VisitError

from gateway.domain.errors import HeadraceError, Reason
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
    Value,
)

FILTER_CHARACTERS_MAX: Final = 10_000
COMPARISONS_MAX: Final = 100
DEPTH_MAX: Final = 30
ORDER_TERMS_MAX: Final = 8
_KEY_CHARACTERS_MAX: Final = 500

_ENTITIES: Final[Mapping[str, Entity]] = {
    **dict.fromkeys(("attribute", "attributes", "attr", "run"), Entity.ATTRIBUTE),
    **dict.fromkeys(("metric", "metrics"), Entity.METRIC),
    **dict.fromkeys(("param", "params", "parameter", "parameters"), Entity.PARAM),
    **dict.fromkeys(("tag", "tags"), Entity.TAG),
    "summary": Entity.SUMMARY,
    **dict.fromkeys(("dataset", "datasets"), Entity.DATASET),
}
_AGGREGATES: Final = {aggregate.value: aggregate for aggregate in Aggregate}


def parse_filter(text: str, *, attributes: Mapping[str, str]) -> Expression | None:
    """Return the tree of a filter; None when it is empty.

    Args:
        text: the filter.
        attributes: the attributes there are: name as written, in lower case, to
            canonical name.

    Raises:
        HeadraceError: FILTER_INVALID with `column`; LIMIT_EXCEEDED.
    """
    if len(text) > FILTER_CHARACTERS_MAX:
        raise HeadraceError(
            Reason.LIMIT_EXCEEDED,
            f"the filter has {len(text)} characters, more than {FILTER_CHARACTERS_MAX}",
            field="filter",
            value=len(text),
            limit=FILTER_CHARACTERS_MAX,
        )
    expression: Expression | None = _read(text, "filter", attributes)
    _check_size(expression)
    return expression


def parse_order(texts: Sequence[str], *, attributes: Mapping[str, str]) -> tuple[OrderTerm, ...]:
    """Return the terms of an order; see `parse_filter`."""
    if len(texts) > ORDER_TERMS_MAX:
        raise HeadraceError(
            Reason.LIMIT_EXCEEDED,
            f"order_by has {len(texts)} terms, more than {ORDER_TERMS_MAX}",
            field="order_by",
            value=len(texts),
            limit=ORDER_TERMS_MAX,
        )
    return tuple(_read(text, "order", attributes) for text in texts)


def invalid(message: str, column: int, *, field: str = "filter") -> HeadraceError:
    """Return the error for something at a column (from 1) of the text."""
    return HeadraceError(
        Reason.FILTER_INVALID, f"{message} (column {column})", field=field, column=column
    )


def _read(text: str, start: str, attributes: Mapping[str, str]) -> Any:
    field = "filter" if start == "filter" else "order_by"
    if "\0" in text:
        raise invalid("the text contains NUL", text.index("\0") + 1, field=field)
    try:
        tree = _PARSER.parse(text, start=start)
        return _Reader(attributes, field).transform(tree)
    except VisitError as error:
        if isinstance(error.orig_exc, HeadraceError):
            raise error.orig_exc from None
        raise
    except UnexpectedInput as error:
        raise _syntax_error(error, text, field) from None


def _syntax_error(error: UnexpectedInput, text: str, field: str) -> HeadraceError:
    if isinstance(error, UnexpectedCharacters):
        place = error.pos_in_stream or 0
        found = text[place]
        if found in "'\"`":
            return invalid("a quotation is not closed", place + 1, field=field)
        return invalid(f"unexpected {found!r}", place + 1, field=field)
    token = getattr(error, "token", None)
    if isinstance(error, UnexpectedEOF) or token is None or token.type == "$END":
        return invalid("the text ends too early", len(text) + 1, field=field)
    return invalid(f"unexpected {str(token)[:40]!r}", (token.start_pos or 0) + 1, field=field)


def _check_size(expression: Expression | None) -> None:
    stack: list[tuple[Expression, int]] = [] if expression is None else [(expression, 1)]
    comparisons = 0
    while stack:
        node, depth = stack.pop()
        if depth > DEPTH_MAX:
            raise HeadraceError(
                Reason.LIMIT_EXCEEDED,
                f"the filter is nested more than {DEPTH_MAX} deep",
                field="filter",
                limit=DEPTH_MAX,
            )
        match node:
            case Not():
                stack.append((node.operand, depth + 1))
            case And() | Or():
                stack += [(operand, depth + 1) for operand in node.operands]
            case _:
                comparisons += 1
    if comparisons > COMPARISONS_MAX:
        raise HeadraceError(
            Reason.LIMIT_EXCEEDED,
            f"the filter has {comparisons} comparisons, more than {COMPARISONS_MAX}",
            field="filter",
            value=comparisons,
            limit=COMPARISONS_MAX,
        )


def _unquoted(token: Token) -> str:
    text = str(token)
    if token.type in ("BACK_QUOTED", "DOUBLE_QUOTED", "SINGLE_QUOTED"):
        return text[1:-1].replace(text[0] * 2, text[0])
    return text


class _Reader(Transformer[Token, Any]):
    """Turns lark's tree into ours, from the leaves up."""

    def __init__(self, attributes: Mapping[str, str], field: str) -> None:
        super().__init__()
        self._attributes = attributes
        self._field = field

    def _fail(self, message: str, column: int) -> NoReturn:
        raise invalid(message, column, field=self._field)

    # -- leaves ---------------------------------------------------------------

    def field(self, tokens: list[Token]) -> Field:
        column = (tokens[0].start_pos or 0) + 1
        words = [_unquoted(token) for token in tokens]
        entity = _ENTITIES.get(words[0].lower())
        if len(words) == 1:
            return self._attribute(words[0], column)
        if entity is None:
            known = "attributes, metrics, params, tags, summary, datasets"
            self._fail(f"unknown {words[0]!r}: use one of {known}", column)
        if entity is Entity.ATTRIBUTE:
            return self._attribute(".".join(words[1:]), column)
        aggregate = Aggregate.LAST
        last = tokens[-1]
        if entity is Entity.METRIC and len(words) > 2 and last.type == "SEGMENT":
            found = _AGGREGATES.get(words[-1].lower())
            if found is not None:
                aggregate = found
                words.pop()
        key = ".".join(words[1:])
        if entity is Entity.DATASET:
            key = key.lower()
            if key not in ("name", "digest", "context"):
                self._fail(f"datasets have name, digest and context, no {key!r}", column)
        if not key or len(key) > _KEY_CHARACTERS_MAX:
            self._fail(f"a key has 1 to {_KEY_CHARACTERS_MAX} characters", column)
        return Field(entity=entity, key=key, aggregate=aggregate, column=column)

    def _attribute(self, name: str, column: int) -> Field:
        canonical = self._attributes.get(name.lower())
        if canonical is None:
            known = ", ".join(sorted(set(self._attributes.values())))
            self._fail(f"there is no attribute {name!r}; there are {known}", column)
        return Field(entity=Entity.ATTRIBUTE, key=canonical, column=column)

    def number(self, tokens: list[Token]) -> tuple[Value, int]:
        text = str(tokens[0])
        column = (tokens[0].start_pos or 0) + 1
        # A number with thousands of digits is slow to convert, and no number.
        value: int | float = math.inf
        if len(text) <= 40:
            value = int(text) if text.lstrip("+-").isdecimal() else float(text)
        if abs(value) > 1e300:
            self._fail("the number is too large", column)
        return value, column

    def string(self, tokens: list[Token]) -> tuple[Value, int]:
        return _unquoted(tokens[0]), (tokens[0].start_pos or 0) + 1

    # -- comparisons ----------------------------------------------------------

    def comparison(self, items: list[Any]) -> Expression:
        return Comparison(field=items[0], operator=Operator(str(items[1])), value=items[2][0])

    def like(self, items: list[Any]) -> Expression:
        return Comparison(field=items[0], operator=Operator.LIKE, value=items[1][0])

    def ilike(self, items: list[Any]) -> Expression:
        return Comparison(field=items[0], operator=Operator.ILIKE, value=items[1][0])

    def not_like(self, items: list[Any]) -> Expression:
        return Comparison(field=items[0], operator=Operator.NOT_LIKE, value=items[1][0])

    def not_ilike(self, items: list[Any]) -> Expression:
        return Comparison(field=items[0], operator=Operator.NOT_ILIKE, value=items[1][0])

    def membership(self, items: list[Any]) -> Expression:
        return self._membership(items, negated=False)

    def not_membership(self, items: list[Any]) -> Expression:
        return self._membership(items, negated=True)

    def _membership(self, items: list[Any], *, negated: bool) -> Expression:
        field, *values = items
        texts = [isinstance(value, str) for value, _ in values]
        if any(texts) and not all(texts):
            self._fail("a list holds texts or numbers, not both", values[texts.index(False)][1])
        return Membership(field=field, values=tuple(value for value, _ in values), negated=negated)

    def absent(self, items: list[Any]) -> Expression:
        return Presence(field=items[0], present=False)

    def present(self, items: list[Any]) -> Expression:
        return Presence(field=items[0], present=True)

    # -- connectives ----------------------------------------------------------

    def negation(self, items: list[Any]) -> Expression:
        return Not(operand=items[0])

    def conjunction(self, items: list[Any]) -> Expression:
        return And(operands=tuple(items))

    def disjunction(self, items: list[Any]) -> Expression:
        return Or(operands=tuple(items))

    def filter(self, items: list[Any]) -> Expression | None:
        return items[0] if items else None

    def order(self, items: list[Any]) -> OrderTerm:
        field, ascending, descending = (*items, None, None)[:3]
        direction = ascending or descending
        return OrderTerm(field=field, descending=direction is not None and direction.type == "DESC")


_PARSER: Final = Lark(
    resources.files("gateway.domain.filters").joinpath("grammar.lark").read_text("utf-8"),
    parser="lalr",
    lexer="contextual",
    start=["filter", "order"],
    propagate_positions=False,
    maybe_placeholders=True,
)
