"""Part sizes, digests and paths of artifacts: the rules of artifact_service.proto. Pure.

The gateway has the same rules in `gateway.domain.artifacts`; a test holds both equal.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final

from headrace.spool_files import holds_spool

_MIB: Final = 1024 * 1024
SINGLE_BYTES_MAX: Final = 16 * _MIB
"""The largest file that goes in one stream."""
SMALL_PART_BYTES: Final = 16 * _MIB
SMALL_PART_FILE_BYTES_MAX: Final = 1024 * _MIB
LARGE_PART_BYTES: Final = 64 * _MIB
PARTS_MAX: Final = 10_000
SIZE_MAX: Final = 5 * 1024 * 1024 * _MIB
CHUNK_BYTES: Final = 524_288
SHA256_BYTES: Final = 32
PATH_BYTES_MAX: Final = 1_024
SEGMENT_BYTES_MAX: Final = 250
_READ_BYTES: Final = _MIB


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
    """Return (offset, length) in bytes of part `part_number` (from 1)."""
    offset = (part_number - 1) * part_size(size)
    return offset, min(part_size(size), size - offset)


def tree_digest(part_sha256s: bytes) -> bytes:
    """Return the digest of a file with these part digests, 32 bytes each."""
    if len(part_sha256s) == SHA256_BYTES:
        return part_sha256s
    return hashlib.sha256(part_sha256s).digest()


def path_fault(path: str) -> str:
    """Say what is wrong with an artifact path; empty when nothing is."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    if not path or len(encoded) > PATH_BYTES_MAX:
        return f"must have 1 to {PATH_BYTES_MAX} bytes"
    if any(character < " " or character in "\x7f\\" for character in path):
        return "contains a control character or a backslash"
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            return "has an empty, `.` or `..` segment, or a `/` at an end"
        if len(segment.encode()) > SEGMENT_BYTES_MAX:
            return f"has a segment longer than {SEGMENT_BYTES_MAX} bytes"
    return ""


def pieces(descriptor: int, offset: int, length: int, piece_bytes: int) -> Iterator[bytes]:
    """Yield a range of an open file; fewer bytes if the file ends before."""
    end = offset + length
    while offset < end:
        piece = os.pread(descriptor, min(piece_bytes, end - offset), offset)
        if not piece:
            return
        yield piece
        offset += len(piece)


def part_sha256(descriptor: int, size: int, part_number: int) -> bytes:
    """Return the SHA-256 of one part of an open file."""
    offset, length = part_range(size, part_number)
    digest = hashlib.sha256()
    for piece in pieces(descriptor, offset, length, _READ_BYTES):
        digest.update(piece)
    return digest.digest()


def file_sha256s(descriptor: int, size: int, *, threads: int) -> bytes:
    """Return the SHA-256 of every part of an open file, 32 bytes each."""
    numbers = range(1, part_count(size) + 1)
    if len(numbers) == 1:
        return part_sha256(descriptor, size, 1)
    with ThreadPoolExecutor(threads) as executor:  # hashlib lets go of the GIL
        return b"".join(executor.map(lambda n: part_sha256(descriptor, size, n), numbers))


def has_content(descriptor: int, size: int, part_sha256s: bytes) -> bool:
    """Whether an open file has this size and, part by part, these digests."""
    if os.fstat(descriptor).st_size != size:
        return False
    return file_sha256s(descriptor, size, threads=4) == part_sha256s


def name_of(source: Path) -> str:
    """Return the last part of a path; of `.` and `..` the directory's own name."""
    return source.resolve().name if source.name in ("", "..") else source.name


def walk(source: Path, name: str) -> list[tuple[Path, str]]:
    """Return (file, artifact path) of a file, or of every file below a directory, sorted.

    Args:
        source: a file or a directory; links to files are followed, links to
            directories are not (they may be circles). Spools, and what is
            below them, are left out.
        name: the artifact path of the file, or the folder of the directory's files.
    """
    if not source.is_dir():
        return [(source, name)]
    found = []
    for directory, folders, names in os.walk(source):
        if holds_spool(names):
            folders.clear()
            continue
        folders.sort()
        for entry in sorted(names):
            file = Path(directory) / entry
            if file.is_file():
                relative = PurePosixPath(*file.relative_to(source).parts)
                found.append((file, f"{name}/{relative}" if name else str(relative)))
    return found
