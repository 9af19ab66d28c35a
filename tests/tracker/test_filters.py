"""The filter language: what is printed is read back; what cannot be read says where."""

import re
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.errors import HeadraceError
from gateway.domain.filters.parsing import parse_filter, parse_order
from gateway.domain.filters.syntax import Expression, OrderTerm
from gateway.store.search import EXPERIMENT_ATTRIBUTES, RUN_ATTRIBUTES
from tests.tracker.expressions import expressions, order_terms


def parse(text: str) -> Expression | None:
    return parse_filter(text, attributes=RUN_ATTRIBUTES)


@given(expressions())
def test_reading_what_was_printed_gives_the_same_tree(expression: Expression) -> None:
    assert parse(str(expression)) == expression


@given(order_terms())
def test_reading_a_printed_order_gives_the_same_term(term: OrderTerm) -> None:
    assert parse_order([str(term)], attributes=RUN_ATTRIBUTES) == (term,)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_its_column(text: str) -> None:
    _read_or_refuse(text)


PIECES = [
    "metrics.",
    "params.a",
    " = ",
    "'x'",
    " AND ",
    " or ",
    "not ",
    "(",
    ")",
    "1e3",
    ".min",
    '"k k"',
    " in ",
    ",",
    " is null",
    "like ",
    "`",
    "--",
    ";",
    "\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_heap_of_tokens_is_read_or_refused_with_its_column(text: str) -> None:
    _read_or_refuse(text)


def _read_or_refuse(text: str) -> None:
    refused = None
    try:
        parse(text)
    except HeadraceError as error:
        refused = error
    if refused is not None:
        assert refused.reason.name == "FILTER_INVALID"
        assert 1 <= int(refused.metadata["column"]) <= len(text) + 1


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ('metrics."val ndcg" > 0.4', "metrics.`val ndcg` > 0.4"),
        ("metric.loss.min<1", "metrics.loss.min < 1"),
        ("metrics.`loss.min` < 1", "metrics.`loss.min` < 1"),
        ('parameter.a = "b"', "params.a = 'b'"),
        ("tags.mlflow.source.name LIKE 'x'", "tags.`mlflow.source.name` LIKE 'x'"),
        ("status = 'RUNNING'", "attributes.state = 'RUNNING'"),
        ("attr.Run_Name ilike 'x'", "attributes.name ILIKE 'x'"),
        ("params.a in ('x', 'y')", "params.a IN ('x', 'y')"),
        (
            "params.a = '1' or params.b = '2' and not params.c is null",
            "params.a = '1' OR params.b = '2' AND NOT params.c IS NULL",
        ),
    ],
)
def test_every_way_to_write_has_one_canonical_form(text: str, canonical: str) -> None:
    # AND binds stronger; its operands inside OR need no parentheses.
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("metrics.loss >", 15, "ends too early"),
        ("metrics.loss > 'x", 16, "not closed"),
        ("params.a = 'x' AND nope = 1", 20, "no attribute 'nope'"),
        ("params.a = 'x' AND foo.bar = 1", 20, "unknown 'foo'"),
        ("params.a = 'x' )", 16, "unexpected ')'"),
        ("params.a in ('x', 1)", 19, "not both"),
        ("metrics.a = 1e999", 13, "too large"),
        ("\0", 1, "NUL"),
    ],
)
def test_an_error_points_at_its_column(text: str, column: int, says: str) -> None:
    with pytest.raises(HeadraceError) as failed:
        parse(text)
    assert failed.value.metadata["column"] == str(column)
    assert says in failed.value.message


@pytest.mark.parametrize(
    "text",
    [
        "(" * 40 + "params.a = '1'" + ")" * 40 + " AND " + "NOT " * 31 + "params.a = '1'",
        " AND ".join(["params.a = '1'"] * 101),
        "params.a = '" + "x" * 10_000 + "'",
    ],
)
def test_filters_are_bounded(text: str) -> None:
    with pytest.raises(HeadraceError) as failed:
        parse(text)
    assert failed.value.reason.name == "LIMIT_EXCEEDED"


def test_nine_terms_of_an_order_are_too_many() -> None:
    with pytest.raises(HeadraceError):
        parse_order(["name"] * 9, attributes=RUN_ATTRIBUTES)


DOCUMENT = Path(__file__).parents[2] / "docs" / "search.md"


def blocks(kind: str) -> list[str]:
    """Return the fenced blocks of one kind in the document."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S)


def test_the_document_has_the_grammar_that_is_used() -> None:
    grammar = resources.files("gateway.domain.filters").joinpath("grammar.lark").read_text("utf-8")
    assert blocks("lark") == [grammar]


def test_every_example_of_the_document_can_be_read() -> None:
    (filters,), (orders,) = blocks("filter"), blocks("order")
    for line in filters.splitlines():
        assert parse(line) is not None
    for line in orders.splitlines():
        assert parse_order([line], attributes=RUN_ATTRIBUTES)


def test_the_document_names_every_attribute() -> None:
    text = DOCUMENT.read_text("utf-8")
    for name in {**RUN_ATTRIBUTES, **EXPERIMENT_ATTRIBUTES}.values():
        assert f"`{name}`" in text, name
