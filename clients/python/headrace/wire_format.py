"""The few pieces of protobuf's wire format that are written by hand. Pure.

Everything of the contract goes through the generated classes but what has to
be written without them: batches (their columns are copied, not looped over)
and metadata entries (a training process imports no protobuf). Tests hold both
equal to the generated classes.
"""

import struct
from typing import Final

_DOUBLE: Final = struct.Struct("<d")


def varint(value: int) -> bytes:
    """A number of at least 0."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def uint_field(number: int, value: int) -> bytes:
    """A field of type uint32 or uint64."""
    return varint(number << 3) + varint(value)


def bytes_field(number: int, content: bytes) -> bytes:
    """A field of bytes, text, a message or a packed column."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def double_field(number: int, value: float) -> bytes:
    """A field of type double."""
    return varint(number << 3 | 1) + _DOUBLE.pack(value)
