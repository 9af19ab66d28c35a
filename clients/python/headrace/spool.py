"""The write side of a spool: what `Run.log` appends to. Owned by one process, one caller at a time.

`append` returns after one `write` of the whole log call to the segment, so
what was logged survives the death of the trainer at any moment. The file is
opened for appending and never mapped: a full disk is an error number, not a
signal. A spool is only ever created, never reopened: after a power loss its
tail may be older than what the gateway has committed.
"""

import errno
import os
import time
from pathlib import Path
from typing import Any, Final

from headrace import spool_files
from headrace.errors import InvalidMetricError, SpoolError
from headrace.limits import ENTRIES_MAX, KEYS_MAX
from headrace.metadata_entries import joined
from headrace.record import (
    METADATA_BYTES_MAX,
    RecordLayout,
    RecordScan,
    ScanEnd,
    crc_seed,
    encode_metadata,
)
from headrace.spool_files import Note, ProcessLock, WriterIdentity

SEGMENT_BYTES: Final = 8 * 1024 * 1024
"""A segment is closed above this size: what a sender rereads at most after a cut, 0.1 s of work."""

LAYOUTS_MAX: Final = 1_024
LAYOUT_KEYS_MAX: Final = 1_000_000
"""Bounds of the layout cache (tuples of keys; keys in all): about 100 MB for the widest runs."""

SPACE_CHECK_INTERVAL_S: Final = 1.0
"""How often a full spool looks whether the sender has made room."""


class SpoolWriter:
    """Appends records to a new spool.

    Not thread-safe: `Run` holds its lock around every call.

    Attributes:
        directory: where the spool is.
        identity: whose it is.
        next_sequence: of the next record.
    """

    def __init__(self, root: Path, identity: WriterIdentity, *, spool_bytes_max: int) -> None:
        """Creates the directory and everything in it, and takes the trainer's lock.

        Raises:
            OSError: the directory cannot be created or written.
        """
        self.identity = identity
        self.directory = root / identity.directory_name
        self.next_sequence = 1
        self.layouts: dict[tuple[str, ...], RecordLayout] = {}
        self._layout_keys = 0
        self._key_indexes: dict[str, int] = {}
        self._seed = crc_seed(identity.incarnation)
        self._spool_bytes_max = spool_bytes_max
        self._full_until = 0.0
        self._segment_offset = 0
        self._segment_first = 0
        self._segment: int | None = None
        self.directory.mkdir(parents=True, mode=0o700)
        self._lock = ProcessLock(self.directory / spool_files.TRAINER_LOCK)
        self._lock.acquire()
        self._note = Note(self.directory / spool_files.TRAINER_NOTE)
        self._note.write({})
        status = Note(self.directory / spool_files.STATUS_NOTE)
        status.write({})
        status.close()
        self._keys = _create(self.directory / spool_files.KEYS_FILE)
        self._keys_offset = 0
        self._open_segment()
        identity.write(self.directory)

    def append(self, layout: RecordLayout, step: int, time_us: int, values: Any) -> None:
        """Writes one log call.

        Args:
            layout: from `layouts` or `define`, for the keys of `values`.
            step: within the contract's range.
            time_us: Unix microseconds.
            values: as many floats, or objects that convert themselves.

        Raises:
            Exception: a value does not convert to float (whatever its type
                raises); nothing was written.
            OSError: no space, or the file cannot be written; nothing was
                written.
        """
        data = layout.encode(self.next_sequence, time_us, step, values, self._seed)
        self._write(data, layout.record_count)

    def append_metadata(self, entries: list[bytes], time_us: int) -> None:
        """Writes what one call says of the run: all of it, or nothing.

        Args:
            entries: in wire form; see metadata_entries.py.
            time_us: Unix microseconds.

        Raises:
            OSError: as `append`.
        """
        contents = joined(entries, entries_max=ENTRIES_MAX, bytes_max=METADATA_BYTES_MAX)
        records = [
            encode_metadata(self.next_sequence + number, time_us, count, content, self._seed)
            for number, (count, content) in enumerate(contents)
        ]
        self._write(b"".join(records), len(records))

    def _write(self, data: bytes, record_count: int) -> None:
        segment = self._segment
        if segment is None or self._segment_offset >= SEGMENT_BYTES:
            segment = self._rotate()
        written = os.write(segment, data)
        if written != len(data):
            self._undo_short_write(segment)
        self._segment_offset += written
        self.next_sequence += record_count

    def define(self, keys: tuple[str, ...]) -> RecordLayout:
        """The layout for flat, valid keys, entering new ones into the dictionary.

        Raises:
            InvalidMetricError: more keys than a writer may have; none was entered.
            OSError: the dictionary cannot be written; none was entered.
        """
        indexes = self._key_indexes
        new = [key for key in keys if key not in indexes]
        if new:
            if len(indexes) + len(new) > KEYS_MAX:
                raise InvalidMetricError(
                    f"{len(new)} new keys beside {len(indexes)}; "
                    f"the limit of a writer is {KEYS_MAX}"
                )
            first = len(indexes)
            data = b"".join(
                spool_files.encode_key(first + number, key, self._seed)
                for number, key in enumerate(new)
            )
            written = os.write(self._keys, data)
            if written != len(data):
                os.ftruncate(self._keys, self._keys_offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._keys_offset += written
            indexes.update((key, first + number) for number, key in enumerate(new))
        layout = RecordLayout([indexes[key] for key in keys])
        if len(self.layouts) >= LAYOUTS_MAX or self._layout_keys + len(keys) > LAYOUT_KEYS_MAX:
            self.layouts.clear()
            self._layout_keys = 0
        self.layouts[keys] = layout
        self._layout_keys += len(keys)
        return layout

    def known_keys(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the keys that the dictionary has already."""
        return tuple(key for key in keys if key in self._key_indexes)

    def repair(self) -> None:
        """Finds the true end of the spool again, after an exception cut an append in the middle.

        (A KeyboardInterrupt may arrive between the write and the counting.)
        """
        path = spool_files.segment_path(self.directory, self._segment_first)
        data = path.read_bytes()
        scan = RecordScan(next_sequence=self._segment_first, seed=self._seed, collect=False)
        end, verdict = scan.feed(data, points_max=1 << 62, last_sequence=1 << 62)
        if verdict is not ScanEnd.END:
            os.truncate(path, end)
        self.next_sequence = scan.next_sequence
        self._segment_offset = end
        self._keys_offset = os.fstat(self._keys).st_size

    def note(self, content: dict[str, Any]) -> None:
        """Tells the sender something, in place; see `sender.TrainerNote`."""
        self._note.write(content)

    def sync(self) -> None:
        """Makes everything so far survive the machine's death (the sender does it otherwise)."""
        for descriptor in (self._keys, self._segment):
            if descriptor is not None:
                os.fsync(descriptor)

    def close(self) -> None:
        """Closes the files and releases the lock: the spool has no trainer any more."""
        self.abandon()
        self._lock.close()

    def abandon(self) -> None:
        """Closes the files of a spool that belongs to another process (in a forked child)."""
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None
        os.close(self._keys)
        self._note.close()

    def _rotate(self) -> int:
        """Opens the next segment, if the limits allow."""
        if time.monotonic() < self._full_until:
            raise SpoolError(errno.EDQUOT, f"the spool {self.directory} is at its limit")
        names = spool_files.segments(self.directory)
        used = sum(_size(spool_files.segment_path(self.directory, first)) for first in names)
        if used + SEGMENT_BYTES > self._spool_bytes_max:
            self._full_until = time.monotonic() + SPACE_CHECK_INTERVAL_S
            raise SpoolError(
                errno.EDQUOT,
                f"the spool {self.directory} holds {used:,} bytes that the gateway has not "
                f"acknowledged; its limit is {self._spool_bytes_max:,}",
            )
        return self._open_segment()

    def _open_segment(self) -> int:
        opened = _create(spool_files.segment_path(self.directory, self.next_sequence))
        if self._segment is not None:
            os.close(self._segment)
        self._segment = opened
        self._segment_first = self.next_sequence
        self._segment_offset = 0
        return opened

    def _undo_short_write(self, segment: int) -> None:
        """Takes back what fitted of a record: the file ends with a whole record again."""
        os.ftruncate(segment, self._segment_offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # trimmed meanwhile
        return 0
