"""Random filters and orders, as trees."""

from typing import Final

from hypothesis import strategies as st

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

ORDERED: Final = [
    Operator.EQUAL,
    Operator.NOT_EQUAL,
    Operator.LESS,
    Operator.LESS_OR_EQUAL,
    Operator.GREATER,
    Operator.GREATER_OR_EQUAL,
]
PATTERNS: Final = [Operator.LIKE, Operator.ILIKE, Operator.NOT_LIKE, Operator.NOT_ILIKE]

KEYS: Final = ["loss", "val ndcg", "a.b", "min", "x/y", "`odd`", "Δ"]
TEXTS: Final = ["", "a", "B", "ab", "a%", "1", "0.5", "-2e1", "1e5", "it's", "x" * 130, "x" * 131]
PATTERN_TEXTS: Final = ["%", "a%", "%B", "_", "\\%", "a\\%", "%x%", "it'%", "A"]
NUMBERS: Final = [-20, 0, 0.5, 1, 2, 100000, -0.25, 1e300]
TIMES: Final[list[str | int | float]] = [
    1_767_225_600_000,
    1_767_225_600_500,
    "2026-01-01T00:00:01Z",
    "2026-01-01",
]
NAMES: Final = ["a", "ab", "run one", "Run One", "it's"]
STATES: Final = ["RUNNING", "finished", "FAILED", "KILLED"]


def _tests(
    item: Field, values: list[str | int | float], *, patterns: bool
) -> st.SearchStrategy[Expression]:
    choices: list[st.SearchStrategy[Expression]] = [
        st.builds(
            Comparison,
            field=st.just(item),
            operator=st.sampled_from(ORDERED),
            value=st.sampled_from(values),
        ),
        st.builds(
            Membership,
            field=st.just(item),
            values=st.lists(st.sampled_from(values), min_size=1, max_size=3).map(
                lambda chosen: tuple(
                    value
                    for value in chosen
                    if isinstance(value, str) == isinstance(chosen[0], str)
                )
            ),
            negated=st.booleans(),
        ),
    ]
    if patterns:
        choices.append(
            st.builds(
                Comparison,
                field=st.just(item),
                operator=st.sampled_from(PATTERNS),
                value=st.sampled_from(PATTERN_TEXTS),
            )
        )
    return st.one_of(choices)


@st.composite
def keyed_fields(draw: st.DrawFn) -> Field:
    """A field of a metric, param, tag or summary value."""
    entity = draw(st.sampled_from([Entity.METRIC, Entity.PARAM, Entity.TAG, Entity.SUMMARY]))
    aggregate = Aggregate.LAST
    if entity is Entity.METRIC:
        aggregate = draw(st.sampled_from(list(Aggregate)))
    return Field(entity=entity, key=draw(st.sampled_from(KEYS)), aggregate=aggregate)


@st.composite
def comparisons(draw: st.DrawFn, *, states: bool = True) -> Expression:
    """A comparison that PostgreSQL can make."""
    kind = draw(st.sampled_from(["keyed", "keyed", "keyed", "name", "time", "state", "dataset"]))
    if kind == "name":
        item = Field(entity=Entity.ATTRIBUTE, key="name")
        return draw(_tests(item, list(NAMES), patterns=True))
    if kind == "time":
        key = draw(st.sampled_from(["start_time", "end_time"]))
        item = Field(entity=Entity.ATTRIBUTE, key=key)
        if draw(st.booleans()):
            return Presence(field=item, present=draw(st.booleans()))
        return draw(_tests(item, TIMES, patterns=False))
    if kind == "state" and states:
        item = Field(entity=Entity.ATTRIBUTE, key="state")
        operator = draw(st.sampled_from([Operator.EQUAL, Operator.NOT_EQUAL]))
        return Comparison(field=item, operator=operator, value=draw(st.sampled_from(STATES)))
    if kind == "dataset":
        key = draw(st.sampled_from(["name", "digest", "context"]))
        item = Field(entity=Entity.DATASET, key=key)
        return draw(_tests(item, ["a", "ab", ""], patterns=True))
    item = draw(keyed_fields())
    if draw(st.integers(0, 5)) == 0:
        return Presence(field=item, present=draw(st.booleans()))
    if item.entity is Entity.METRIC or draw(st.booleans()):
        return draw(_tests(item, list(NUMBERS), patterns=False))
    return draw(_tests(item, list(TEXTS), patterns=True))


def expressions() -> st.SearchStrategy[Expression]:
    """A filter."""
    return st.recursive(
        comparisons(),
        lambda inner: st.one_of(
            st.builds(Not, operand=inner),
            st.builds(And, operands=st.lists(inner, min_size=2, max_size=3).map(tuple)),
            st.builds(Or, operands=st.lists(inner, min_size=2, max_size=3).map(tuple)),
        ),
        max_leaves=8,
    )


def order_terms() -> st.SearchStrategy[OrderTerm]:
    """A term of an order."""
    attributes = st.sampled_from(["name", "start_time", "end_time", "state"]).map(
        lambda key: Field(entity=Entity.ATTRIBUTE, key=key)
    )
    return st.builds(
        OrderTerm, field=st.one_of(attributes, keyed_fields()), descending=st.booleans()
    )
