"""Protobuf's varint, for the messages that are read and written without building them."""


def varint(number: int) -> bytes:
    """Return a number of at least 0 as a varint."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
