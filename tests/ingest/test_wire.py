"""Reading a batch in place gives what the generated class gives, for every legal encoding."""

import struct
from random import Random

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from headrace.v1.metric_service_pb2 import (
    DefineKeys,
    Heartbeat,
    KeyDefinition,
    MetricBatch,
    WriteMetricsRequest,
)
from headrace.wire_format import varint
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.errors import HeadraceError, Reason
from gateway.ingest.session import Batch
from gateway.rpc.wire import decode

_INT64 = st.integers(-(2**63), 2**63 - 1)


def _same(batch: object, expected: MetricBatch) -> None:
    assert isinstance(batch, Batch)
    assert batch.first_sequence == expected.first_sequence
    assert batch.record_count == expected.record_count
    assert batch.series_index.tolist() == list(expected.series_index)
    assert batch.step.tolist() == list(expected.step)
    assert batch.time.tolist() == list(expected.time_unix_us)
    np.testing.assert_array_equal(batch.value, np.array(list(expected.value)))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 2**32 - 1), max_size=9),
    st.lists(_INT64, max_size=9),
    st.lists(_INT64, max_size=9),
    st.lists(st.floats(), max_size=9),
    st.randoms(use_true_random=False),
)
def test_packed_unpacked_and_split_columns_decode_alike(  # noqa: PLR0917 - hypothesis' way
    first: int,
    count: int,
    index: list[int],
    step: list[int],
    time: list[int],
    value: list[float],
    rng: object,
) -> None:
    expected = MetricBatch(
        first_sequence=first,
        record_count=count,
        series_index=index,
        step=step,
        time_unix_us=time,
        value=value,
    )
    _same(decode(WriteMetricsRequest(batch=expected).SerializeToString()), expected)

    # The same batch, each column cut into packed and unpacked parts.
    parts = b"\x08" + varint(first) + b"\x10" + varint(count)
    for field, form, items in (
        (3, "<I", index),
        (4, "<q", step),
        (5, "<q", time),
        (6, "<d", value),
    ):
        wire_type = 5 if form == "<I" else 1
        place = 0
        while place < len(items):
            size = rng.randint(1, 3)  # type: ignore[attr-defined]
            packed = b"".join(struct.pack(form, item) for item in items[place : place + size])
            if rng.random() < 0.5:  # type: ignore[attr-defined]
                parts += varint(field << 3 | 2) + varint(len(packed)) + packed
            else:
                for item in items[place : place + size]:
                    parts += varint(field << 3 | wire_type) + struct.pack(form, item)
            place += size
    _same(decode(b"\x1a" + varint(len(parts)) + parts), expected)


def _usual(points: int, first: int = 2**40) -> MetricBatch:
    return MetricBatch(
        first_sequence=first,
        record_count=points,
        series_index=range(points),
        step=range(-1, points - 1),
        time_unix_us=range(2**50, 2**50 + points),
        value=[number / 8 for number in range(points)],
    )


@pytest.mark.parametrize(
    "points", [1, 3, 4, 5, 15, 16, 17, 31, 32, 585, 586, 2047, 2048, 4095, 4096, 8192, 37_000]
)
def test_the_usual_encoding_is_read_in_place_whatever_the_lengths_of_its_varints(
    points: int,
) -> None:
    expected = _usual(points)
    batch = decode(WriteMetricsRequest(batch=expected).SerializeToString())
    _same(batch, expected)
    assert isinstance(batch, Batch)
    columns = (batch.series_index, batch.step, batch.time, batch.value)
    assert not any(column.flags.owndata for column in columns)


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 255), st.randoms())
def test_a_changed_byte_is_read_as_the_generated_class_reads_it(
    points: int, first: int, byte: int, rng: Random
) -> None:
    message = bytearray(WriteMetricsRequest(batch=_usual(points, first)).SerializeToString())
    # Half of the time before the first column, where most of what can be read wrongly is.
    place = rng.randrange(min(20, len(message)) if rng.random() < 0.5 else len(message))
    message[place] = byte
    _agree(bytes(message))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.randoms())
def test_a_message_cut_short_or_drawn_out_is_read_as_the_generated_class_reads_it(
    points: int, rng: Random
) -> None:
    message = WriteMetricsRequest(batch=_usual(points)).SerializeToString()
    place = rng.randrange(len(message))
    _agree(message[:place])
    _agree(message[:place] + bytes(rng.randrange(1, 30)) + message[place:])


def test_messages_of_other_kinds_come_back_as_messages() -> None:
    keys = WriteMetricsRequest(keys=DefineKeys(keys=[KeyDefinition(index=1, key="loss")]))
    assert decode(keys.SerializeToString()) == keys
    beat = WriteMetricsRequest(heartbeat=Heartbeat())
    assert decode(beat.SerializeToString()) == beat
    assert decode(b"") == WriteMetricsRequest()


def test_the_last_member_of_a_repeated_oneof_wins() -> None:
    batch = WriteMetricsRequest(batch=MetricBatch(first_sequence=1, record_count=1))
    beat = WriteMetricsRequest(heartbeat=Heartbeat())
    assert decode(batch.SerializeToString() + beat.SerializeToString()) == beat


def test_a_key_that_is_not_utf8_is_a_malformed_message() -> None:
    key = b"\x08\x01\x12\x02\xff\xfe"
    keys = b"\x0a" + varint(len(key)) + key
    with pytest.raises(HeadraceError) as caught:
        decode(b"\x12" + varint(len(keys)) + keys)
    assert caught.value.reason is Reason.MALFORMED_MESSAGE
    assert "UTF-8" in caught.value.message


def test_a_message_over_the_limit_names_limit_and_size() -> None:
    with pytest.raises(HeadraceError) as caught:
        decode(bytes(1_048_577))
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    assert caught.value.metadata == {"field": "message", "value": "1048577", "limit": "1048576"}


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_garbage_is_refused_or_read_like_the_generated_class_reads_it(
    tail: bytes, as_batch: bool
) -> None:
    message = b"\x1a" + varint(len(tail)) + tail if as_batch else tail
    _agree(message)


def _agree(message: bytes) -> None:
    """Compare what `decode` makes of a message with what the generated class makes of it."""
    found: object
    try:
        found = decode(message)
    except HeadraceError as error:
        found = error.reason
    if found is Reason.MALFORMED_MESSAGE:
        with pytest.raises(DecodeError):
            WriteMetricsRequest.FromString(message)
        return
    expected = WriteMetricsRequest.FromString(message)
    if expected.WhichOneof("message") == "metadata":
        return  # tests/tracker/test_metadata_stream.py has these
    if found is Reason.FIELD_INVALID:
        assert expected.batch.first_sequence >= 2**63
    elif isinstance(found, Batch):
        _same(found, expected.batch)
    else:
        assert found == expected
