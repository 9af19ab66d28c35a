"""Metadata in wire form agrees with the generated classes; what no gateway would take is named."""

from collections.abc import Callable

import pytest
from headrace import metadata_entries as entries
from headrace.batches import write_request
from headrace.errors import InvalidMetadataError
from headrace.limits import MESSAGE_BYTES_MAX
from headrace.record import METADATA_BYTES_MAX, MetadataRecords
from headrace.v1.metric_service_pb2 import MetadataBatch, WriteMetricsRequest
from headrace.v1.run_service_pb2 import DatasetInput, MetadataEntry, Param, SummaryValue, Tag
from hypothesis import given
from hypothesis import strategies as st

_keys = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=250)
_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)


def decoded(entry: bytes) -> MetadataEntry:
    """The one entry that these bytes are."""
    (message,) = MetadataBatch.FromString(entry).entries
    return message


@given(key=_keys, text=_texts, number=st.floats(allow_nan=False))
def test_every_kind_of_entry_decodes_to_what_was_said(key: str, text: str, number: float) -> None:
    assert decoded(entries.param(key, text)) == MetadataEntry(param=Param(key=key, value=text))
    assert decoded(entries.tag(key, text)) == MetadataEntry(tag=Tag(key=key, value=text))
    assert decoded(entries.deleted_tag(key)) == MetadataEntry(deleted_tag=key)
    assert decoded(entries.notes(text)) == MetadataEntry(notes=text)
    assert decoded(entries.summary(key, number)) == MetadataEntry(
        summary=SummaryValue(key=key, number=number)
    )
    assert decoded(entries.summary(key, text)) == MetadataEntry(
        summary=SummaryValue(key=key, text=text)
    )
    assert decoded(
        entries.dataset(name=key, digest=text[:64], source=text, schema=text, profile="p")
    ) == MetadataEntry(
        dataset=DatasetInput(name=key, digest=text[:64], source=text, schema=text, profile="p")
    )


@given(st.lists(st.tuples(_keys, _texts), min_size=1, max_size=20))
def test_a_message_of_metadata_is_what_the_generated_class_writes(
    pairs: list[tuple[str, str]],
) -> None:
    records = MetadataRecords(
        first_sequence=7,
        record_count=3,
        entry_count=len(pairs),
        entries=b"".join(entries.tag(key, value) for key, value in pairs),
    )
    data = write_request(records)
    expected = WriteMetricsRequest(
        metadata=MetadataBatch(
            first_sequence=7,
            record_count=3,
            entries=[MetadataEntry(tag=Tag(key=key, value=value)) for key, value in pairs],
        )
    )
    assert WriteMetricsRequest.FromString(data) == expected


def test_the_largest_entry_fits_a_record_and_a_record_fits_a_message() -> None:
    widest = "\U0010ffff"
    largest = entries.dataset(
        name=500 * widest, digest=64 * widest, context=86 * widest, source_type=250 * widest,
        source=65_535 * widest, schema=65_535 * widest, profile=65_535 * widest,
    )  # fmt: skip
    assert len(largest) < METADATA_BYTES_MAX < MESSAGE_BYTES_MAX - 100


@given(st.lists(st.integers(1, 400), max_size=50), st.integers(1, 20), st.integers(400, 900))
def test_records_keep_both_limits_and_lose_no_entry(
    sizes: list[int], entries_max: int, bytes_max: int
) -> None:
    given_entries = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    parts = list(entries.joined(given_entries, entries_max=entries_max, bytes_max=bytes_max))
    assert b"".join(content for _, content in parts) == b"".join(given_entries)
    assert sum(count for count, _ in parts) == len(given_entries)
    assert all(count <= entries_max for count, _ in parts)
    assert all(len(content) <= bytes_max for _, content in parts)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: entries.param("", "x"), "empty"),
        (lambda: entries.param("k" * 251, "x"), "251"),
        (lambda: entries.param("a\nb", "x"), "control"),
        (lambda: entries.param("lr", "x" * 6_001), "6,001 characters; the limit is 6,000"),
        (lambda: entries.tag("t", "x" * 8_001), "8,000"),
        (lambda: entries.tag("t", "\ud800"), "Unicode"),
        (lambda: entries.notes("a\0b"), "NUL"),
        (lambda: entries.notes("x" * 65_536), "65,535"),
        (lambda: entries.dataset(name=""), "no name"),
        (lambda: entries.dataset(name="d", digest="x" * 65), "digest of dataset 'd'"),
        (lambda: entries.dataset(name=500 * "\U00020000", context=200 * "\u4e00" + "x"), "2,601 b"),
        (lambda: entries.summary_value([1, 2]), "list"),
    ],
)
def test_what_no_gateway_would_take_is_named(make: Callable[[], object], named: str) -> None:
    with pytest.raises(InvalidMetadataError, match=named):
        make()
