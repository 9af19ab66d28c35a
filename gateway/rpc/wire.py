"""From the bytes of a WriteMetricsRequest to a batch, without building the message.

The four columns of a batch are packed fixed-width fields: on the wire each is a
run of little-endian numbers, which numpy can look at in place. That is taken when
the message is as all known encoders write it: every field once, in the order of their
numbers, all columns of one length. What stands before each column then follows from the
length of the message, and is compared rather than parsed. Any other legal encoding
(unpacked, split, several oneof members) goes through the generated class, so the result
is the same for every encoder.
"""

from functools import lru_cache
from time import perf_counter
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from headrace.v1.metric_service_pb2 import MetadataBatch, MetricBatch, WriteMetricsRequest
from headrace.wire_format import varint

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.limits import MESSAGE_BYTES_MAX
from gateway.ingest.session import Batch
from gateway.rpc.metadata import entries

_BATCH_TAG: Final = 0x1A
_FIRST_SEQUENCE: Final = b"\x08"
_RECORD_COUNT: Final = b"\x10"
_COLUMNS: Final = ((0x1A, 4), (0x22, 8), (0x2A, 8), (0x32, 8))  # tag, bytes of a number
_POINT_BYTES: Final = sum(size for _, size in _COLUMNS)
# Making a dtype is half of what looking at a column costs.
_UINT32, _INT64, _FLOAT64 = np.dtype("<u4"), np.dtype("<i8"), np.dtype("<f8")
_NO_INDEX: Final = np.empty(0, np.uint32)
_NO_INT: Final = np.empty(0, np.int64)
_NO_VALUE: Final = np.empty(0, np.float64)
_OVERHEAD_BYTES: Final = 1_024  # of a batch's Python and numpy objects
_ENTRY_BYTES: Final = 200  # of a metadata entry's Python objects, besides its texts


def decode(message: bytes) -> Batch | WriteMetricsRequest:
    """Return the batch a message carries, or the message when it carries something else.

    Raises:
        HeadraceError: MALFORMED_MESSAGE or LIMIT_EXCEEDED.
    """
    if len(message) > MESSAGE_BYTES_MAX:
        raise HeadraceError(
            Reason.LIMIT_EXCEEDED,
            f"the message has {len(message)} bytes; the limit is {MESSAGE_BYTES_MAX}",
            field="message",
            value=len(message),
            limit=MESSAGE_BYTES_MAX,
        )
    batch = _in_place(message)
    if batch is not None:
        return batch
    try:
        request = WriteMetricsRequest.FromString(message)
    except DecodeError as error:
        raise HeadraceError(
            Reason.MALFORMED_MESSAGE,
            "the bytes are not a WriteMetricsRequest, or a string in it is not UTF-8",
            field="message",
            value=message[:16].hex(),
        ) from error
    kind = request.WhichOneof("message")
    if kind == "batch":
        return _from_message(request.batch, len(message))
    if kind == "metadata":
        return _from_metadata(request.metadata, len(message))
    return request


def _in_place(message: bytes) -> Batch | None:
    """Return the batch of a message in the usual form; None leaves it to the generated class."""
    end = len(message)
    head = _batch_head(end)
    if not head or not message.startswith(head):
        return None
    first_sequence, place = _field(message, len(head), _FIRST_SEQUENCE)
    record_count, place = _field(message, place, _RECORD_COUNT)
    # The heads of the columns take less than a point does.
    points = (end - place) // _POINT_BYTES
    if points < 1 or first_sequence >= 2**63 or record_count >= 2**32:
        return None
    index_head, step_head, time_head, value_head = _column_heads(points)
    index_at = place + len(index_head)
    step_at = index_at + 4 * points + len(step_head)
    time_at = step_at + 8 * points + len(time_head)
    value_at = time_at + 8 * points + len(value_head)
    if not (
        value_at + 8 * points == end
        and message.startswith(index_head, place)
        and message.startswith(step_head, index_at + 4 * points)
        and message.startswith(time_head, step_at + 8 * points)
        and message.startswith(value_head, time_at + 8 * points)
    ):
        return None
    return Batch(
        first_sequence=first_sequence,
        record_count=record_count,
        series_index=np.frombuffer(message, _UINT32, points, index_at),
        step=np.frombuffer(message, _INT64, points, step_at),
        time=np.frombuffer(message, _INT64, points, time_at),
        value=np.frombuffer(message, _FLOAT64, points, value_at),
        size_bytes=end + _OVERHEAD_BYTES,
        arrived=perf_counter(),
    )


def _field(message: bytes, place: int, tag: bytes) -> tuple[int, int]:
    """Return a field and the place after it; a place past the end when it is not there."""
    if message.startswith(tag, place):
        value = shift = 0
        for byte in message[place + 1 : place + 11]:
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place + 1
            shift += 7
    return 0, len(message) + 1


@lru_cache(maxsize=4096)
def _batch_head(message_bytes: int) -> bytes:
    """Return what stands before the batch in a message that holds it alone; b"" if none can."""
    head = bytes([_BATCH_TAG])
    for length_bytes in range(1, 5):
        body_bytes = message_bytes - 1 - length_bytes
        if body_bytes >= 0 and len(length := varint(body_bytes)) == length_bytes:
            return head + length
    return b""


@lru_cache(maxsize=4096)
def _column_heads(points: int) -> tuple[bytes, ...]:
    """Return what stands before each column of a batch with so many points."""
    return tuple(bytes([tag]) + varint(points * size) for tag, size in _COLUMNS)


def _from_metadata(batch: MetadataBatch, size_bytes: int) -> Batch:
    _check_sequence(batch.first_sequence, field="metadata.first_sequence")
    return Batch(
        first_sequence=batch.first_sequence,
        record_count=batch.record_count,
        series_index=_NO_INDEX,
        step=_NO_INT,
        time=_NO_INT,
        value=_NO_VALUE,
        # Parsed texts take about twice the message.
        size_bytes=2 * size_bytes + _ENTRY_BYTES * len(batch.entries) + _OVERHEAD_BYTES,
        arrived=perf_counter(),
        metadata=entries(batch.entries, field="metadata.entries"),
    )


def _check_sequence(sequence: int, *, field: str) -> None:
    if sequence >= 2**63:
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"{field} is {sequence}; the limit is {2**63 - 1}",
            field=field,
            value=sequence,
            limit=2**63 - 1,
        )


def _from_message(batch: MetricBatch, size_bytes: int) -> Batch:
    _check_sequence(batch.first_sequence, field="batch.first_sequence")
    return Batch(
        first_sequence=batch.first_sequence,
        record_count=batch.record_count,
        series_index=np.asarray(batch.series_index, np.uint32),
        step=np.asarray(batch.step, np.int64),
        time=np.asarray(batch.time_unix_us, np.int64),
        value=np.asarray(batch.value, np.float64),
        size_bytes=size_bytes + _OVERHEAD_BYTES,
        arrived=perf_counter(),
    )
