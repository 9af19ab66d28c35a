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
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from headrace.limits import BATCH_POINTS_MAX

MAGIC: Final = 0x31435248
"""`HRC1` in ASCII."""

MAGIC_BYTES: Final = MAGIC.to_bytes(4, "little")
HEADER: Final = struct.Struct("<IIQqq")
HEADER_BYTES: Final = HEADER.size
RECORD_BYTES_MIN: Final = HEADER_BYTES + 4
RECORD_BYTES_MAX: Final = RECORD_BYTES_MIN + 12 * BATCH_POINTS_MAX

_RESIDUE: Final = 0x2144DF1C
"""CRC32 of any message followed by its own CRC32, whatever it started from."""


def crc_seed(incarnation: str) -> int:
    """What the CRCs of a spool start from."""
    return zlib.crc32(incarnation.encode())


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


class ScanEnd(Enum):
    """Why a scan stopped."""

    LIMIT = auto()
    """The limit of points or records was reached."""
    END = auto()
    """The data ends between two records."""
    INCOMPLETE = auto()
    """The data ends inside what may be a record."""
    INVALID = auto()
    """What stands there is no valid record with the expected sequence."""


class RecordScan:
    """Collects valid consecutive records from pieces of a segment.

    Usage: `feed` pieces until it answers something else than END, then
    `columns`. State between calls is the next sequence and the columns so far.
    """

    __slots__ = (
        "_first_sequence",
        "_indexes",
        "_seed",
        "_steps",
        "_times",
        "_values",
        "next_sequence",
        "point_count",
    )

    def __init__(self, *, next_sequence: int, seed: int) -> None:
        self.next_sequence = next_sequence
        self.point_count = 0
        self._first_sequence = next_sequence
        self._seed = seed
        self._indexes: list[bytes] = []
        self._steps: list[bytes] = []
        self._times: list[bytes] = []
        self._values: list[bytes] = []

    def feed(self, data: bytes, *, points_max: int, last_sequence: int) -> tuple[int, ScanEnd]:
        """Takes records from the start of `data`; answers the bytes taken and why it stopped.

        Stops before a record that would make more than `points_max` points,
        and after the record `last_sequence`.
        """
        size = len(data)
        unpack = HEADER.unpack_from
        crc32 = zlib.crc32
        seed = self._seed
        expected = self.next_sequence
        points = self.point_count
        position = 0
        verdict = ScanEnd.END
        while position < size:
            if position + RECORD_BYTES_MIN > size:
                magic = data[position : position + 4]
                verdict = ScanEnd.INCOMPLETE if MAGIC_BYTES.startswith(magic) else ScanEnd.INVALID
                break
            if expected > last_sequence:
                verdict = ScanEnd.LIMIT
                break
            magic_number, count, sequence, _, _ = unpack(data, position)
            if magic_number != MAGIC or count > BATCH_POINTS_MAX or sequence != expected:
                verdict = ScanEnd.INVALID
                break
            end = position + RECORD_BYTES_MIN + 12 * count
            if end > size:
                verdict = ScanEnd.INCOMPLETE
                break
            if points + count > points_max:
                verdict = ScanEnd.LIMIT
                break
            if crc32(data[position:end], seed) != _RESIDUE:
                verdict = ScanEnd.INVALID
                break
            columns = position + HEADER_BYTES
            middle = columns + 4 * count
            self._times.append(data[position + 16 : position + 24] * count)
            self._steps.append(data[position + 24 : columns] * count)
            self._indexes.append(data[columns:middle])
            self._values.append(data[middle : end - 4])
            points += count
            expected += 1
            position = end
        self.next_sequence = expected
        self.point_count = points
        return position, verdict

    def lose_until(self, sequence: int) -> None:
        """Counts the records before `sequence` as lost: present, without points."""
        self.next_sequence = sequence

    def columns(self) -> RecordColumns | None:
        """What was collected; None when nothing was."""
        if self.next_sequence == self._first_sequence:
            return None
        return RecordColumns(
            first_sequence=self._first_sequence,
            record_count=self.next_sequence - self._first_sequence,
            point_count=self.point_count,
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
    position = data.find(MAGIC_BYTES, start)
    while position >= 0 and position + RECORD_BYTES_MIN <= len(data):
        _, count, sequence, _, _ = HEADER.unpack_from(data, position)
        end = position + RECORD_BYTES_MIN + 12 * count
        if (
            count <= BATCH_POINTS_MAX
            and end <= len(data)
            and sequence >= least_sequence
            and zlib.crc32(data[position:end], seed) == _RESIDUE
        ):
            return position, sequence
        position = data.find(MAGIC_BYTES, position + 1)
    return None
