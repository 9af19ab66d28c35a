"""The identifiers that a client makes: 32 lower-case hex digits each."""

import hashlib
import os
import re
import time
from typing import Final

_PATTERN: Final = re.compile(r"[0-9a-f]{32}")
_VERSION_MASK: Final = 0xF << 76
_VARIANT_MASK: Final = 0x3 << 62


def is_identifier(text: str) -> bool:
    """Whether `text` has the form of a run, writer or incarnation id."""
    return _PATTERN.fullmatch(text) is not None


def new_identifier() -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of Unix milliseconds, then random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return _stamped(value, version=7)


def derived_identifier(*parts: str) -> str:
    """A UUID of version 8 made from text, the same in every process that names the same parts.

    The first 128 bits of SHA-256 over `headrace-run-1` and the parts, each
    preceded by its length in UTF-8 bytes (so that no two lists of parts
    collide by shifting text between them), with version and variant stamped.
    """
    digest = hashlib.sha256(b"headrace-run-1")
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return _stamped(int.from_bytes(digest.digest()[:16], "big"), version=8)


def _stamped(value: int, *, version: int) -> str:
    value = value & ~_VERSION_MASK | version << 76
    value = value & ~_VARIANT_MASK | 0x2 << 62
    return f"{value:032x}"
