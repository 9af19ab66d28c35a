"""The read side of a spool: records in sequence, as columns. Used by senders, while it is written.

Nothing is skipped silently. What cannot be read is either the torn end of a
spool whose trainer is gone (its last call never returned: dropped, and
reported when bytes were there), or damage. After damage the reader looks for
the next valid record; the records between are *lost*: they keep their sequence
numbers, go to the gateway without points, and are reported with file and
offset. While the trainer lives, what looks invalid at the end of the last
segment may be half of a write, so it is believed only when it is still there
on later reads.
"""

import contextlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace import spool_files
from headrace.record import (
    RECORD_BYTES_MAX,
    MetadataRecords,
    RecordColumns,
    RecordScan,
    ScanEnd,
    crc_seed,
    find_record,
)

READ_BYTES: Final = 256 * 1024
"""Bytes read at a time: more than two of the largest records of points. A record of
metadata may be larger and is then read whole."""

SEARCH_BYTES: Final = 16 * 1024 * 1024
"""Bytes read at once when looking for the next valid record: twice a segment."""

DOUBTS_MAX: Final = 5
"""Reads after which invalid bytes at a living spool's end are damage, not half of a write."""

_NO_LIMIT: Final = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A place in a spool that could not be read.

    Attributes:
        file: the file's name.
        offset: bytes from its start.
        skipped_bytes: up to the next valid record or the end.
        lost_records: sequence numbers that lie there; 0 for a torn end, whose
            number of records is unknown (at most the last log call).
    """

    file: str
    offset: int
    skipped_bytes: int
    lost_records: int

    def __str__(self) -> str:
        what = f"{self.lost_records} records are lost" if self.lost_records else "a torn end"
        return f"{self.file}, offset {self.offset}: {self.skipped_bytes} bytes unreadable; {what}"


class SpoolReader:
    """Reads records onwards from a position that `seek` sets.

    Attributes:
        next_sequence: of the next record to be read.
        more: whether the last read stopped at a limit: what follows is there already.
        damages: what could not be read, in the order it was met.
    """

    def __init__(self, directory: Path, incarnation: str) -> None:
        self.next_sequence = 1
        self.more = False
        self.damages: list[Damage] = []
        self._directory = directory
        self._seed = crc_seed(incarnation)
        self._segment: int | None = None
        self._segment_first = 0
        self._offset = 0
        self._doubts = 0
        self._lost_until = 0
        self._trimmed_until = 1

    def close(self) -> None:
        """Closes the segment."""
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None

    def seek(self, sequence: int, *, ended: bool) -> int:
        """Goes to a record; answers the sequence from which reading continues.

        That is `sequence`, or the first one that has not been trimmed if that
        is greater, or the end of the spool if that is smaller.
        """
        firsts = spool_files.segments(self._directory)
        if not firsts:
            self.close()
            return self.next_sequence
        reachable = [first for first in firsts if first <= sequence] or firsts[:1]
        self._open(reachable[-1])
        while self.next_sequence < sequence:
            before = self.next_sequence
            self._scan(_NO_LIMIT, ended=ended, last_sequence=sequence - 1, collect=False)
            if self.next_sequence == before:
                break
        if reachable[-1] <= sequence < self.next_sequence:
            self.next_sequence = sequence  # inside lost records: the next read counts the rest
        return self.next_sequence

    def read(
        self, points_max: int, *, ended: bool, last_sequence: int = _NO_LIMIT
    ) -> RecordColumns | MetadataRecords | None:
        """The next records of one kind, as many as a message holds; None: none now.

        Args:
            points_max: at least BATCH_POINTS_MAX, so that any record fits.
            ended: no process writes this spool any more.
            last_sequence: do not read beyond this record.
        """
        return self._scan(points_max, ended=ended, last_sequence=last_sequence).records()

    def _scan(
        self, points_max: int, *, ended: bool, last_sequence: int, collect: bool = True
    ) -> RecordScan:
        scan = RecordScan(next_sequence=self.next_sequence, seed=self._seed, collect=collect)
        self.more = False
        read_bytes = READ_BYTES
        while self._segment is not None:
            data = os.pread(self._segment, read_bytes, self._offset)
            taken, verdict = scan.feed(data, points_max=points_max, last_sequence=last_sequence)
            self._offset += taken
            if taken:
                self._doubts = 0
            if verdict is ScanEnd.LIMIT or scan.next_sequence > last_sequence:
                self.more = verdict is ScanEnd.LIMIT
                break
            if taken and (verdict is ScanEnd.END or len(data) == read_bytes):
                read_bytes = READ_BYTES
                if scan.count:
                    break  # a piece is enough for a batch; the rest comes with the next call
                continue
            if verdict is ScanEnd.INCOMPLETE and len(data) == read_bytes < RECORD_BYTES_MAX:
                read_bytes = RECORD_BYTES_MAX
                continue
            if not self._turn(scan, data, verdict, ended=ended):
                break
        self.next_sequence = scan.next_sequence
        return scan

    def trim(self, committed_sequence: int) -> None:
        """Deletes the segments whose records are all committed; never the last one."""
        if self._segment_first == self._trimmed_until:
            return
        firsts = spool_files.segments(self._directory)
        for first, following in itertools.pairwise(firsts):
            if following <= committed_sequence + 1 and first != self._segment_first:
                spool_files.segment_path(self._directory, first).unlink(missing_ok=True)
                self._trimmed_until = following

    def fsync(self, first_segment: int) -> None:
        """Makes the segments from one on survive a power loss."""
        for first in spool_files.segments(self._directory):
            if first >= first_segment:
                with contextlib.suppress(FileNotFoundError):  # trimmed meanwhile
                    descriptor = os.open(
                        spool_files.segment_path(self._directory, first), os.O_RDONLY
                    )
                    try:
                        os.fdatasync(descriptor)
                    finally:
                        os.close(descriptor)

    def end_of_spool(self) -> tuple[int, int]:
        """The last segment and its size: changes with every record."""
        firsts = spool_files.segments(self._directory)
        if not firsts:
            return 0, 0
        return firsts[-1], spool_files.segment_path(self._directory, firsts[-1]).stat().st_size

    def _turn(self, scan: RecordScan, data: bytes, verdict: ScanEnd, *, ended: bool) -> bool:
        """At the end of what is readable: to the next segment, past damage, or False to wait."""
        following = self._following()
        if verdict is ScanEnd.END and not data:
            if following is None:
                return False
            if os.pread(self._segment or 0, 1, self._offset):
                return True  # written between our read and the birth of the next segment
            if following > scan.next_sequence:  # the end of a segment is missing
                self._lose(scan, following, skipped_bytes=0)
            self._open(following)
            return True
        if following is None and not ended:
            self._doubts += 1
            if self._doubts < DOUBTS_MAX:
                return False
        return self._skip_damage(scan, following, ended=ended)

    def _skip_damage(self, scan: RecordScan, following: int | None, *, ended: bool) -> bool:
        """Goes to the next valid record, counting those before it as lost; False: there is none."""
        segment = self._segment or 0
        base = self._offset
        while True:
            data = os.pread(segment, SEARCH_BYTES, base)
            found = find_record(data, 0, least_sequence=scan.next_sequence, seed=self._seed)
            if found is not None and (following is None or found[1] < following):
                offset, sequence = found
                self._lose(scan, sequence, skipped_bytes=base + offset - self._offset)
                self._offset = base + offset
                return True
            if len(data) < SEARCH_BYTES:
                break
            base += SEARCH_BYTES - RECORD_BYTES_MAX
        size = os.fstat(segment).st_size
        if following is not None:
            self._lose(scan, following, skipped_bytes=size - self._offset)
            self._open(following)
            return True
        if ended:
            self._lose(scan, scan.next_sequence, skipped_bytes=size - self._offset)
            self._offset = size
        return False

    def _lose(self, scan: RecordScan, until: int, *, skipped_bytes: int) -> None:
        damage = Damage(
            file=spool_files.segment_path(self._directory, self._segment_first).name,
            offset=self._offset,
            skipped_bytes=skipped_bytes,
            lost_records=max(0, until - max(scan.next_sequence, self._lost_until)),
        )
        if damage.lost_records or until == scan.next_sequence:  # not met before a reconnect
            self.damages.append(damage)
        self._lost_until = max(self._lost_until, until)
        scan.lose_until(until)

    def _following(self) -> int | None:
        later = [f for f in spool_files.segments(self._directory) if f > self._segment_first]
        return later[0] if later else None

    def _open(self, first: int) -> None:
        self.close()
        path = spool_files.segment_path(self._directory, first)
        self._segment = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._segment_first = first
        self._offset = 0
        self._doubts = 0
        self.next_sequence = first


class KeyReader:
    """Reads the key dictionary onwards.

    Attributes:
        keys: index → key, so far.
        skipped_bytes: damaged bytes met so far; the keys in them are unknown.
    """

    def __init__(self, directory: Path, incarnation: str) -> None:
        self.keys: dict[int, str] = {}
        self.skipped_bytes = 0
        self._descriptor = os.open(directory / spool_files.KEYS_FILE, os.O_RDONLY | os.O_CLOEXEC)
        self._seed = crc_seed(incarnation)
        self._offset = 0

    def read(self, *, ended: bool) -> None:
        """Takes in what was added. Keys are written before the records that use them."""
        size = os.fstat(self._descriptor).st_size
        if size <= self._offset:
            return
        data = os.pread(self._descriptor, size - self._offset, self._offset)
        entries, taken, skipped = spool_files.decode_keys(data, self._seed, ended=ended)
        self._offset += taken
        self.skipped_bytes += skipped
        self.keys.update(entries)

    def fsync(self) -> None:
        """Makes the dictionary survive a power loss."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)
