"""What lies in a spool directory, and who may touch it.

    writer.json                what the spool is: written once, last, when it is created
    keys                       the key dictionary, appended by the trainer, never trimmed
    00000000000000000001.segment …   records, appended by the trainer; the name is the first
                               sequence; deleted by the sender once acknowledged
    trainer.json               the trainer's word to the sender: state, dropped points
    status.json                the sender's word to the trainer: what is committed
    trainer.lock, sender.lock  held by the living process
    sender.log                 what the sender had to say

One process writes each file. Notes (trainer.json, status.json) are JSON padded
to a fixed size and overwritten in place, so that they can still be written
when the disk is full. Locks are POSIX record locks: they belong to a process,
are not inherited by fork, and the kernel drops them when the process dies in
whatever way, so neither a reused process id nor a surviving forked child can
pass for the owner. Their files must be opened nowhere else in the owner:
closing any descriptor of the file would drop the lock. So spools are left out of
directories that are logged as artifacts; see `holds_spool`.
"""

import contextlib
import fcntl
import json
import os
import shutil
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

from headrace.errors import SpoolError
from headrace.facts import UNKNOWN_ORIGIN, Origin

FORMAT: Final = 2
"""Version of everything in the directory; a reader refuses others."""

WRITER_FILE: Final = "writer.json"
QUEUE_FILE: Final = "queue.json"
"""Stands for WRITER_FILE in a queue of artifacts; see artifact_queue.py."""
KEYS_FILE: Final = "keys"
TRAINER_NOTE: Final = "trainer.json"
STATUS_NOTE: Final = "status.json"
TRAINER_LOCK: Final = "trainer.lock"
SENDER_LOCK: Final = "sender.lock"
SENDER_LOG: Final = "sender.log"
SEGMENT_SUFFIX: Final = ".segment"

NOTE_BYTES: Final = 4096
"""Size of a note: one page, which file systems write and read as a whole."""

_KEY_HEADER: Final = struct.Struct("<III")
_KEY_MAGIC: Final = 0x314B5248
_KEY_MAGIC_BYTES: Final = _KEY_MAGIC.to_bytes(4, "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterIdentity:
    """What a spool is: the run it belongs to and the writer that filled it.

    Attributes:
        parent_run_id: empty for none.
        origin, facts: who started the job, where, from what, in which
            environment; empty but in rank 0's own process, which speaks for the run.
        ends_run: whether the end of this writer is the end of the run (rank 0's
            own process; no forked child and no other rank).
        forked: whether the writer is a forked child, which says nothing of the run's end.
        system_metrics_interval_s: how often the sender samples the machine; 0: never.
        trainer_pid: for people and system metrics; liveness is told by the lock.
    """

    run_id: str
    writer_id: str
    incarnation: str
    experiment: str
    name: str
    step_policy: int
    late_policy: int
    rank: int
    attempt: int
    resume_step: int | None
    resume_exempt_keys: tuple[str, ...]
    parent_run_id: str = ""
    origin: Origin = UNKNOWN_ORIGIN
    facts: Mapping[str, str] = field(default_factory=dict)
    system_metrics_interval_s: float = 0.0
    ends_run: bool
    forked: bool = False
    trainer_pid: int
    created_us: int
    format: int = FORMAT

    @property
    def directory_name(self) -> str:
        """Readable, and unique by the writer."""
        return f"{self.run_id}-r{self.rank}-a{self.attempt}-{self.writer_id[-12:]}"

    def write(self, directory: Path) -> None:
        """Writes writer.json whole or not at all; from then on the directory is a spool."""
        draft = directory / (WRITER_FILE + ".draft")
        with draft.open("w") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(directory / WRITER_FILE)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """What `write` wrote.

        Raises:
            SpoolError: no spool, of another format, or damaged.
        """
        path = directory / WRITER_FILE
        try:
            content = json.loads(path.read_text())
            if content.get("format") != FORMAT:
                raise SpoolError(
                    f"{path} has format {content.get('format')!r}; this version reads {FORMAT}"
                )
            content["resume_exempt_keys"] = tuple(content["resume_exempt_keys"])
            content["origin"] = Origin(**content["origin"])
            # Spools of before say so only of rank 0, whose children alone do not end its run.
            content.setdefault("forked", content["rank"] == 0 and not content["ends_run"])
            return cls(**{known.name: content[known.name] for known in fields(cls)})
        except FileNotFoundError:
            raise SpoolError(f"{directory} is no spool: it has no {WRITER_FILE}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpoolError(f"{path} is damaged: {error!r}") from error


def spools(root: Path) -> list[Path]:
    """The spools in a directory, oldest first; the directory itself if it is one."""
    if (root / WRITER_FILE).exists():
        return [root]
    found = [path.parent for path in root.glob(f"*/{WRITER_FILE}")]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def holds_spool(names: Collection[str]) -> bool:
    """Whether a directory with these files is a spool, or a queue of artifacts."""
    return TRAINER_LOCK in names and (WRITER_FILE in names or QUEUE_FILE in names)


def segment_path(directory: Path, first_sequence: int) -> Path:
    """The segment that begins with a record."""
    return directory / f"{first_sequence:020d}{SEGMENT_SUFFIX}"


def segments(directory: Path) -> list[int]:
    """First sequences of the segments, ascending."""
    found = []
    for name in os.listdir(directory):  # noqa: PTH208 - names only; Path objects cost ten times
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - likewise
        if suffix == SEGMENT_SUFFIX and stem.isdigit():
            found.append(int(stem))
    return sorted(found)


class Note:
    """A small JSON object in a file of fixed size, overwritten in place by its one owner."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, content: Mapping[str, Any]) -> None:
        """Replaces the content. Needs no disk space after the first time.

        Raises:
            OSError: the first write did not fit.
        """
        encoded = json.dumps(content).encode()
        os.pwrite(self._descriptor, encoded.ljust(NOTE_BYTES - 1) + b"\n", 0)

    @staticmethod
    def fits(content: Mapping[str, Any]) -> bool:
        """Whether a note can hold the content."""
        return len(json.dumps(content)) < NOTE_BYTES

    def close(self) -> None:
        """Gives the descriptor back."""
        os.close(self._descriptor)

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The content; empty when there is none yet (or it is just being replaced)."""
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


class ProcessLock:
    """A lock that its process holds until it closes it or dies."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self) -> bool:
        """Takes the lock if nobody else has it; True when this process holds it now."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except PermissionError:  # the same answer on some systems
            return False
        return True

    def close(self) -> None:
        """Releases the lock."""
        os.close(self._descriptor)


def encode_key(index: int, key: str, seed: int) -> bytes:
    """One entry of the key dictionary: magic, index, length, UTF-8, CRC32; see record.py."""
    encoded = key.encode()
    body = _KEY_HEADER.pack(_KEY_MAGIC, index, len(encoded)) + encoded
    return body + zlib.crc32(body, seed).to_bytes(4, "little")


def decode_keys(data: bytes, seed: int, *, ended: bool) -> tuple[list[tuple[int, str]], int, int]:
    """The valid entries at the start of `data`, the bytes they take, the bytes skipped as damaged.

    With `ended`, whatever does not become valid is skipped; without, an
    incomplete or invalid tail is left for the next call (it may be being
    written).
    """
    entries: list[tuple[int, str]] = []
    position = taken = skipped = 0
    while position < len(data):
        entry = _key_at(data, position, seed)
        if entry is not None:
            index, key, end = entry
            entries.append((index, key))
            skipped += position - taken
            position = taken = end
            continue
        position = data.find(_KEY_MAGIC_BYTES, position + 1)
        if position < 0:
            break
    if ended:
        skipped += len(data) - taken
        taken = len(data)
    return entries, taken, skipped


def _key_at(data: bytes, position: int, seed: int) -> tuple[int, str, int] | None:
    if position + _KEY_HEADER.size + 4 > len(data):
        return None
    magic, index, length = _KEY_HEADER.unpack_from(data, position)
    end = position + _KEY_HEADER.size + length + 4
    if magic != _KEY_MAGIC or end > len(data):
        return None
    body = data[position : end - 4]
    if zlib.crc32(body, seed) != int.from_bytes(data[end - 4 : end], "little"):
        return None
    return index, body[_KEY_HEADER.size :].decode(), end


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Holds the lock of a path for a block; yields whether it could be taken."""
    lock = ProcessLock(path)
    try:
        yield lock.acquire()
    finally:
        lock.close()


def remove_spool(directory: Path) -> None:
    """Deletes a spool that is done: writer.json first, so that half of it is none."""
    with contextlib.suppress(OSError):
        (directory / WRITER_FILE).unlink()
    shutil.rmtree(directory, ignore_errors=True)
