"""Artifact paths, part sizes and digests: the rules of artifact_service.proto.

Pure. The gateway checks with these functions what clients send; the client
has the same rules in `headrace.artifact_rules`, and a test holds both equal.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from gateway.domain.errors import HeadraceError, Reason

_MIB: Final = 1024 * 1024

SINGLE_BYTES_MAX: Final = 16 * _MIB
"""The largest file that goes by UploadArtifact, as one PUT."""

SMALL_PART_BYTES: Final = 16 * _MIB
SMALL_PART_FILE_BYTES_MAX: Final = 1024 * _MIB
"""Files up to this size have small parts: 64 of 16 MiB, enough to go parallel."""

LARGE_PART_BYTES: Final = 64 * _MIB
PARTS_MAX: Final = 10_000
"""S3's limit. Above 625 GiB parts are doubled until they fit."""

SIZE_MAX: Final = 5 * 1024 * 1024 * _MIB
"""5 TiB, the largest object of S3."""

CHUNK_BYTES_MAX: Final = 524_288
"""Bytes in a chunk: half of the largest message."""

DOWNLOAD_CHUNK_BYTES: Final = 262_144
SIGNED_PARTS_MAX: Final = 100
PATH_BYTES_MAX: Final = 1_024
SEGMENT_BYTES_MAX: Final = 250
CONTENT_TYPE_CHARACTERS_MAX: Final = 250
CONTENT_TYPE_DEFAULT: Final = "application/octet-stream"
SHA256_BYTES: Final = 32


def part_size(size: int) -> int:
    """Return the size of every part but the last of a file of `size` bytes."""
    if size <= SMALL_PART_FILE_BYTES_MAX:
        return SMALL_PART_BYTES
    part = LARGE_PART_BYTES
    while size > part * PARTS_MAX:
        part *= 2
    return part


def part_count(size: int) -> int:
    """Return how many parts a file of `size` bytes has, at least 1."""
    return max(1, -(-size // part_size(size)))


def part_range(size: int, part_number: int) -> tuple[int, int]:
    """Return (offset, length) in bytes of part `part_number` (from 1).

    Raises:
        HeadraceError: FIELD_INVALID, there is no such part.
    """
    count = part_count(size)
    if not 1 <= part_number <= count:
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"part_number must be 1 to {count}",
            field="part_number",
            value=part_number,
            limit=count,
        )
    offset = (part_number - 1) * part_size(size)
    return offset, min(part_size(size), size - offset)


def tree_digest(part_sha256s: bytes) -> bytes:
    """Return the digest, 32 bytes, of a file with these part digests (32 bytes each)."""
    if len(part_sha256s) == SHA256_BYTES:
        return part_sha256s
    return hashlib.sha256(part_sha256s).digest()


def check_path(path: str, *, field: str = "path") -> str:
    """Return `path` when it is a valid artifact path.

    Raises:
        HeadraceError: ARTIFACT_PATH_INVALID, naming what is wrong with it.
    """
    fault = _path_fault(path)
    if fault is not None:
        raise HeadraceError(
            Reason.ARTIFACT_PATH_INVALID, f"artifact path {fault}", field=field, value=ascii(path)
        )
    return path


def _path_fault(path: str) -> str | None:  # noqa: PLR0911 - a list of rules
    if not path:
        return "is empty"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    if len(encoded) > PATH_BYTES_MAX:
        return f"is longer than {PATH_BYTES_MAX} bytes"
    if any(character < " " or character in "\x7f\\" for character in path):
        return "contains a control character or a backslash"
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            return "has an empty, `.` or `..` segment (or a `/` at an end)"
        if len(segment.encode()) > SEGMENT_BYTES_MAX:
            return f"has a segment longer than {SEGMENT_BYTES_MAX} bytes"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a file holds: its size in bytes and the SHA-256 of each part.

    Raises:
        HeadraceError: FIELD_INVALID or LIMIT_EXCEEDED when the two do not fit.
    """

    size: int
    part_sha256s: bytes

    def __post_init__(self) -> None:
        if self.size > SIZE_MAX:
            raise HeadraceError(
                Reason.LIMIT_EXCEEDED,
                f"an artifact holds at most {SIZE_MAX} bytes (5 TiB)",
                field="size",
                value=self.size,
                limit=SIZE_MAX,
            )
        expected = part_count(self.size) * SHA256_BYTES
        if len(self.part_sha256s) != expected:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"a file of {self.size} bytes has {part_count(self.size)} parts of"
                f" {part_size(self.size)} bytes: {expected} bytes of part digests",
                field="part_sha256s" if expected > SHA256_BYTES else "digest",
                value=f"{len(self.part_sha256s)} bytes",
                limit=expected,
            )

    @property
    def digest(self) -> bytes:
        """The SHA-256 tree, 32 bytes."""
        return tree_digest(self.part_sha256s)

    @property
    def part_count(self) -> int:
        """How many parts there are."""
        return part_count(self.size)

    def part_sha256(self, part_number: int) -> bytes:
        """Return the SHA-256 of part `part_number` (from 1)."""
        start = (part_number - 1) * SHA256_BYTES
        return self.part_sha256s[start : start + SHA256_BYTES]
