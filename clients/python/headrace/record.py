"""The format of a record in a spool segment. Pure: bytes in, bytes out.

A record is what one log call wrote, or 8,192 points of it:

    magic u32 | count u32 | sequence u64 | time_us i64 | step i64
    | count x key index u32 | count x value f64 | crc32 u32

little-endian, unaligned, 36 + 12 x count bytes. The columns stand as they go
on the wire, so a sender builds batches by joining slices and looks at no
point. The CRC covers everything before it and starts from the spool's
incarnation: a record of another spool (a recycled disk block after a power
loss) does not pass for one of this. A CRC32 appended little-endian to its own
message gives a constant, so checking is one call and one comparison.

A record of metadata is what one call said of the run (params, tags, …), or
1,000 entries of it:

    magic u32 | count u32 | sequence u64 | time_us i64 | size i64
    | size bytes of entries | crc32 u32

Both kinds share the sequence. Its entries stand as they go on the wire, too;
see metadata_entries.py.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from headrace.limits import BATCH_POINTS_MAX, ENTRIES_MAX

MAGIC: Final = 0x31435248
"""`HRC1` in ASCII."""

METADATA_MAGIC: Final = 0x314D5248
"""`HRM1` in ASCII."""

MAGIC_BYTES: Final = MAGIC.to_bytes(4, "little")
METADATA_MAGIC_BYTES: Final = METADATA_MAGIC.to_bytes(4, "little")
_MAGIC_START: Final = b"HR"

METADATA_BYTES_MAX: Final = 900 * 1024
"""Bytes of entries in a record and in a message: below the 1 MiB of a message, above the
largest entry, a dataset of 3 x 65,535 characters of 4 bytes."""

HEADER: Final = struct.Struct("<IIQqq")
HEADER_BYTES: Final = HEADER.size
RECORD_BYTES_MIN: Final = HEADER_BYTES + 4
RECORD_BYTES_MAX: Final = RECORD_BYTES_MIN + METADATA_BYTES_MAX

_RESIDUE: Final = 0x2144DF1C
"""CRC32 of any message followed by its own CRC32, whatever it started from."""


def crc_seed(incarnation: str) -> int:
    """What the CRCs of a spool start from."""
    return zlib.crc32(incarnation.encode())


def encode_metadata(sequence: int, time_us: int, count: int, entries: bytes, seed: int) -> bytes:
    """A record of `count` entries, which stand in `entries` in wire form."""
    body = HEADER.pack(METADATA_MAGIC, count, sequence, time_us, len(entries)) + entries
    return body + zlib.crc32(body, seed).to_bytes(4, "little")


def _record_bytes(magic: int, count: int, size: int) -> int:
    """Bytes of a record with this head; 0 when there is no such record."""
    if magic == MAGIC and count <= BATCH_POINTS_MAX:
        return RECORD_BYTES_MIN + 12 * count
    if magic == METADATA_MAGIC and count <= ENTRIES_MAX and 0 <= size <= METADATA_BYTES_MAX:
        return RECORD_BYTES_MIN + size
    return 0


class RecordLayout:
    """How the records of one tuple of keys are packed; made once, used by every call.

    Attributes:
        pack: packs (MAGIC, count, sequence, time_us, step, indexes, *values).
        count: points in the record.
        indexes: the key indexes, packed.
        parts: for more points than a record holds, the layouts of its records.
    """

    __slots__ = ("count", "indexes", "pack", "parts")

    def __init__(self, key_indexes: Sequence[int]) -> None:
        count = len(key_indexes)
        self.count = count
        self.parts: tuple[RecordLayout, ...] = ()
        if count > BATCH_POINTS_MAX:
            self.parts = tuple(
                RecordLayout(key_indexes[start : start + BATCH_POINTS_MAX])
                for start in range(0, count, BATCH_POINTS_MAX)
            )
            self.indexes = b""
            self.pack = HEADER.pack  # never called: each part packs itself
        else:
            self.indexes = struct.pack(f"<{count}I", *key_indexes)
            self.pack = struct.Struct(f"<IIQqq{4 * count}s{count}d").pack

    def encode(
        self, sequence: int, time_us: int, step: int, values: Iterable[float], seed: int
    ) -> bytes:
        """The records of one log call, ready to be written; `sequence` is the first one's.

        Raises:
            Exception: a value does not convert itself to float (struct.error,
                or whatever its type raises).
        """
        if not self.parts:
            body = self.pack(MAGIC, self.count, sequence, time_us, step, self.indexes, *values)
            return body + zlib.crc32(body, seed).to_bytes(4, "little")
        listed = list(values)
        records = []
        start = 0
        for number, part in enumerate(self.parts):
            chosen = listed[start : start + part.count]
            records.append(part.encode(sequence + number, time_us, step, chosen, seed))
            start += part.count
        return b"".join(records)

    @property
    def record_count(self) -> int:
        """Records that one call writes."""
        return len(self.parts) or 1


@dataclass(slots=True, kw_only=True)
class RecordColumns:
    """Consecutive records as the packed columns of a wire batch.

    Attributes:
        first_sequence: of the first record.
        record_count: records, lost ones included (they have no points).
        point_count: elements of each column.
        series_index: little-endian uint32 each.
        step, time_unix_us: little-endian int64 each.
        value: little-endian float64 each.
    """

    first_sequence: int
    record_count: int
    point_count: int
    series_index: bytes
    step: bytes
    time_unix_us: bytes
    value: bytes

    @property
    def last_sequence(self) -> int:
        """Of the last record."""
        return self.first_sequence + self.record_count - 1


@dataclass(slots=True, kw_only=True)
class MetadataRecords:
    """Consecutive records of metadata as the entries of a wire batch.

    Attributes:
        first_sequence: of the first record.
        record_count: records, lost ones included (they have no entries).
        entry_count: entries of all of them.
        entries: the entries in wire form.
    """

    first_sequence: int
    record_count: int
    entry_count: int
    entries: bytes

    @property
    def last_sequence(self) -> int:
        """Of the last record."""
        return self.first_sequence + self.record_count - 1


class ScanEnd(Enum):
    """Why a scan stopped."""

    LIMIT = auto()
    """The limit of points, entries or records was reached, or the other kind of record."""
    END = auto()
    """The data ends between two records."""
    INCOMPLETE = auto()
    """The data ends inside what may be a record."""
    INVALID = auto()
    """What stands there is no valid record with the expected sequence."""


class RecordScan:
    """Collects valid consecutive records of one kind from pieces of a segment.

    Usage: `feed` pieces until it answers something else than END, then
    `records`. State between calls is the next sequence and what was collected.

    Attributes:
        next_sequence: of the next record.
        count: points or entries collected.
    """

    __slots__ = (
        "_collect",
        "_entries",
        "_first_sequence",
        "_indexes",
        "_seed",
        "_steps",
        "_times",
        "_values",
        "count",
        "next_sequence",
    )

    def __init__(self, *, next_sequence: int, seed: int, collect: bool = True) -> None:
        """Prepare; without `collect`, records of both kinds are only checked and counted."""
        self.next_sequence = next_sequence
        self.count = 0
        self._collect = collect
        self._first_sequence = next_sequence
        self._seed = seed
        self._indexes: list[bytes] = []
        self._steps: list[bytes] = []
        self._times: list[bytes] = []
        self._values: list[bytes] = []
        self._entries: list[bytes] = []

    def feed(  # noqa: PLR0912, PLR0915 - one loop: it runs for every record that is logged
        self, data: bytes, *, points_max: int, last_sequence: int
    ) -> tuple[int, ScanEnd]:
        """Takes records from the start of `data`; answers the bytes taken and why it stopped.

        Stops before a record that would make more than `points_max` points or
        more entries than a message holds, before a record of another kind
        than those collected, and after the record `last_sequence`.
        """
        size = len(data)
        unpack = HEADER.unpack_from
        crc32 = zlib.crc32
        seed = self._seed
        collect, values, entries = self._collect, self._values, self._entries
        expected = self.next_sequence
        total = self.count
        position = 0
        verdict = ScanEnd.END
        while position < size:
            if position + RECORD_BYTES_MIN > size:
                magic = data[position : position + 4]
                possible = MAGIC_BYTES.startswith(magic) or METADATA_MAGIC_BYTES.startswith(magic)
                verdict = ScanEnd.INCOMPLETE if possible else ScanEnd.INVALID
                break
            if expected > last_sequence:
                verdict = ScanEnd.LIMIT
                break
            magic_number, count, sequence, _, step_or_size = unpack(data, position)
            if magic_number == MAGIC and count <= BATCH_POINTS_MAX:
                length = RECORD_BYTES_MIN + 12 * count
            else:
                length = _record_bytes(magic_number, count, step_or_size)
            if not length or sequence != expected:
                verdict = ScanEnd.INVALID
                break
            end = position + length
            if end > size:
                verdict = ScanEnd.INCOMPLETE
                break
            if collect:
                if magic_number == MAGIC:
                    fits = not entries and total + count <= points_max
                else:
                    fits = not values and total + count <= ENTRIES_MAX
                    fits = fits and sum(map(len, entries)) + step_or_size <= METADATA_BYTES_MAX
                if not fits:
                    verdict = ScanEnd.LIMIT
                    break
            if crc32(data[position:end], seed) != _RESIDUE:
                verdict = ScanEnd.INVALID
                break
            if collect:
                content = position + HEADER_BYTES
                if magic_number == MAGIC:
                    middle = content + 4 * count
                    self._times.append(data[position + 16 : position + 24] * count)
                    self._steps.append(data[position + 24 : content] * count)
                    self._indexes.append(data[content:middle])
                    values.append(data[middle : end - 4])
                else:
                    entries.append(data[content : end - 4])
                total += count
            expected += 1
            position = end
        self.next_sequence = expected
        self.count = total
        return position, verdict

    def lose_until(self, sequence: int) -> None:
        """Counts the records before `sequence` as lost: present, without content."""
        self.next_sequence = sequence

    def records(self) -> RecordColumns | MetadataRecords | None:
        """What was collected; None when nothing was."""
        record_count = self.next_sequence - self._first_sequence
        if not record_count:
            return None
        if self._entries:
            return MetadataRecords(
                first_sequence=self._first_sequence,
                record_count=record_count,
                entry_count=self.count,
                entries=b"".join(self._entries),
            )
        return RecordColumns(
            first_sequence=self._first_sequence,
            record_count=record_count,
            point_count=self.count,
            series_index=b"".join(self._indexes),
            step=b"".join(self._steps),
            time_unix_us=b"".join(self._times),
            value=b"".join(self._values),
        )


def find_record(
    data: bytes, start: int, *, least_sequence: int, seed: int
) -> tuple[int, int] | None:
    """Offset and sequence of the first valid record at or after `start`; None if there is none.

    Used after corruption: a record counts only with its CRC and with a
    sequence of at least `least_sequence`.
    """
    position = data.find(_MAGIC_START, start)
    while position >= 0 and position + RECORD_BYTES_MIN <= len(data):
        magic, count, sequence, _, step_or_size = HEADER.unpack_from(data, position)
        length = _record_bytes(magic, count, step_or_size)
        end = position + length
        if (
            length
            and end <= len(data)
            and sequence >= least_sequence
            and zlib.crc32(data[position:end], seed) == _RESIDUE
        ):
            return position, sequence
        position = data.find(_MAGIC_START, position + 1)
    return None
