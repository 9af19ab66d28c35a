"""From the bytes of a WriteMetricsRequest to a batch, without building the message.

The four columns of a batch are packed fixed-width fields: on the wire each is a
run of little-endian numbers, which numpy can look at in place. That is taken when
every column stands there once and packed, as all known encoders write it. Any
other legal encoding (unpacked, split, several oneof members) goes through the
generated class, so the result is the same for every encoder.
"""

from time import perf_counter
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from headrace.v1.metric_service_pb2 import MetadataBatch, MetricBatch, WriteMetricsRequest
from numpy.typing import NDArray

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.limits import MESSAGE_BYTES_MAX
from gateway.ingest.session import Batch
from gateway.rpc.metadata import entries

_BATCH_TAG: Final = 0x1A
_FIRST_SEQUENCE, _RECORD_COUNT = 0x08, 0x10
_COLUMNS: Final = {
    tag: (np.dtype(kind), size)  # making a dtype is half of what looking at a column costs
    for tag, kind, size in ((0x1A, "<u4", 4), (0x22, "<i8", 8), (0x2A, "<i8", 8), (0x32, "<f8", 8))
}
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
    if message and message[0] == _BATCH_TAG:
        length, start = _varint(message, 1)
        if start + length == len(message):
            batch = _columns_in_place(message, start)
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


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return a varint and the place after it; a place past the end when it is cut off."""
    if place >= len(message):
        return 0, len(message) + 1
    byte = message[place]
    if byte < 0x80:
        return byte, place + 1
    value, shift = byte & 0x7F, 7
    for byte in message[place + 1 : place + 10]:
        place += 1
        if byte < 0x80:
            return value | byte << shift, place + 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return 0, len(message) + 1


def _columns_in_place(message: bytes, place: int) -> Batch | None:
    """Return the batch when it is in the usual form; None leaves it to the generated class."""
    first_sequence = record_count = 0
    columns: dict[int, NDArray[Any]] = {}
    end = len(message)
    while place < end:
        tag = message[place]
        number, place = _varint(message, place + 1)
        if place > end:
            return None
        column = _COLUMNS.get(tag)
        if column is not None:
            kind, size = column
            if tag in columns or number % size or place + number > end:
                return None
            columns[tag] = np.frombuffer(message, kind, number // size, place)
            place += number
        elif tag == _FIRST_SEQUENCE:
            first_sequence = number
        elif tag == _RECORD_COUNT:
            record_count = number
        else:
            return None
    if first_sequence >= 2**63 or record_count >= 2**32:
        return None
    return Batch(
        first_sequence=first_sequence,
        record_count=record_count,
        series_index=columns.get(0x1A, _NO_INDEX),
        step=columns.get(0x22, _NO_INT),
        time=columns.get(0x2A, _NO_INT),
        value=columns.get(0x32, _NO_VALUE),
        size_bytes=len(message) + _OVERHEAD_BYTES,
        arrived=perf_counter(),
    )


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
