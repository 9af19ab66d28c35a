"""Encodes a MetricBatch message by hand: packed columns are copied, never looped over.

The generated class builds a repeated field element by element, 13 to 40 ns
each; the spool already has the columns in wire form. Everything else of the
contract goes through the generated classes. A test holds the two equal.
"""

from headrace.record import RecordColumns

POINT_BYTES = 28
"""Bytes of one point on the wire: 4 index, 8 step, 8 time, 8 value."""


def write_request(columns: RecordColumns) -> bytes:
    """A serialised WriteMetricsRequest that carries the records as its batch."""
    batch = b"".join(
        (
            b"\x08",
            _varint(columns.first_sequence),
            b"\x10",
            _varint(columns.record_count),
            _packed(b"\x1a", columns.series_index),
            _packed(b"\x22", columns.step),
            _packed(b"\x2a", columns.time_unix_us),
            _packed(b"\x32", columns.value),
        )
    )
    return b"\x1a" + _varint(len(batch)) + batch


def _packed(tag: bytes, column: bytes) -> bytes:
    return tag + _varint(len(column)) + column if column else b""


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
