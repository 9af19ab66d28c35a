"""Artifacts that wait to be stored: the trainer's side. No gRPC, nothing is waited for.

A queue is a directory of its own in the spool directory, one for each process
that logs artifacts:

    queue.json            the run; written once, last, when the queue is made
    00000001.json …       requests: what to store, where; whole when they appear
    00000001.content      the content, when the queue holds it (see below)
    failed/00000001.json  requests that can never succeed, and why; or a damaged one
                          as it was found, with its .content
    status.json           the uploader's word: how many were stored, what it waits for
    closed                the trainer will add no more
    trainer.lock, uploader.lock, uploader.log

What a request holds of a file's content, the first that works: a copy, for
files of up to 1 MiB; a clone that shares its blocks (XFS, Btrfs), after which
the file may be changed at will; a hard link, which outlives deletion and
replacement, not writing in place; else its path. A file that was changed
between the call and its storing is never stored: the request fails and says so.
So does one whose content in the queue is not what was put there: nothing is made
durable here, and a power loss may cut or empty any of these files.
A symbolic link stands for the file that it names at the time of the call.
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import stat
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from headrace import spool_files
from headrace.identifiers import is_identifier, new_identifier
from headrace.spool_files import QUEUE_FILE, Note, ProcessLock

FOLDER: Final = "artifacts"
CLOSED_FILE: Final = "closed"
FAILED_FOLDER: Final = "failed"
STATUS_NOTE: Final = "status.json"
TRAINER_LOCK: Final = "trainer.lock"
UPLOADER_LOCK: Final = "uploader.lock"
UPLOADER_LOG: Final = "uploader.log"

COPY_BYTES_MAX: Final = 1_048_576
_FICLONE: Final = 0x40049409  # linux/fs.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One file to store.

    Attributes:
        path: the artifact's path.
        source: the file to read; in the queue, or where it was.
        owned: whether the queue holds the content in a file of its own, which
            nobody changes.
        content_type: may be empty.
        size: of the content; -1: not known (queues of before).
        modified_ns: of the file when it was logged, -1 when owned.
        logged_as: what the user named, for messages.
        crc32: of a content that was copied; None: not known.
    """

    path: str
    source: str
    owned: bool
    content_type: str
    size: int
    modified_ns: int
    logged_as: str
    crc32: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactStatus:
    """Counts of one queue.

    Attributes:
        stored: artifacts that are visible.
        pending: artifacts that wait.
        failed: (path, why) of those that can never be stored.
        dropped: artifacts that found no place in the queue (a full disk).
        waits_for: why those that wait could not be stored when last tried; empty
            when nothing is known to be wrong.
    """

    stored: int = 0
    pending: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    dropped: int = 0
    waits_for: str = ""

    @property
    def done(self) -> bool:
        """Whether nothing waits."""
        return not self.pending

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.stored:,} artifacts stored"]
        if self.pending:
            parts.append(f"{self.pending:,} pending")
            if self.waits_for:
                parts[-1] += f" ({self.waits_for})"
        if self.dropped:
            parts.append(f"{self.dropped:,} dropped for lack of disk")
        for path, why in self.failed[:3]:
            parts.append(f"{path!r} failed: {why}")
        if len(self.failed) > 3:
            parts.append(f"{len(self.failed) - 3:,} more failed")
        return ", ".join(parts)


class ArtifactQueue:
    """A queue as its trainer sees it."""

    def __init__(self, spool_dir: Path, run_id: str) -> None:
        """Make the queue.

        Raises:
            OSError: it cannot be made.
        """
        self.directory = spool_dir / FOLDER / f"{run_id}-{new_identifier()[-12:]}"
        (self.directory / FAILED_FOLDER).mkdir(parents=True)
        self._lock = ProcessLock(self.directory / TRAINER_LOCK)
        self._lock.acquire()
        # Made now: a full disk must not keep the uploader from saying what it did.
        note = Note(self.directory / STATUS_NOTE)
        note.write({"stored": 0})
        note.close()
        self._numbers = itertools.count(1)
        _write_whole(self.directory / QUEUE_FILE, {"run_id": run_id, "format": 1})

    def add_file(self, source: Path, path: str, content_type: str) -> None:
        """Queue a file; see the module for what is kept of it.

        Raises:
            OSError: the file cannot be read, or the request not be written.
        """
        origin = source.resolve()  # a link itself could not be hard-linked, and may move on
        status = origin.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{source} is no regular file")
        if origin.name == TRAINER_LOCK:
            beside = {file.name for file in origin.parent.iterdir()}
            if spool_files.holds_spool(beside):  # to read it would drop the lock
                raise OSError(f"{source} is the lock of a spool")
        content = self._next_content()
        owned, kept, copied = _keep(origin, content, status.st_size)
        size = status.st_size
        if owned:  # the file may have grown since
            size = content.stat().st_size if copied is None else len(copied)
        self._add(
            content,
            Request(
                path=path,
                source=os.fspath(content if kept else origin),
                owned=owned,
                content_type=content_type,
                size=size,
                modified_ns=-1 if owned else status.st_mtime_ns,
                logged_as=os.fspath(source),
                crc32=None if copied is None else zlib.crc32(copied),
            ),
        )

    def add_bytes(self, data: bytes, path: str, content_type: str) -> None:
        """Queue content.

        Raises:
            OSError: it does not fit the disk.
        """
        content = self._next_content()
        try:
            content.write_bytes(data)
        except OSError:
            content.unlink(missing_ok=True)
            raise
        self._add(
            content,
            Request(
                path=path,
                source=os.fspath(content),
                owned=True,
                content_type=content_type,
                size=len(data),
                modified_ns=-1,
                logged_as=path,
                crc32=zlib.crc32(data),
            ),
        )

    def _next_content(self) -> Path:
        """A file that no other call has, nor a signal handler in the middle of this one."""
        return self.directory / f"{next(self._numbers):08d}.content"

    def _add(self, content: Path, request: Request) -> None:
        try:
            _write_whole(content.with_suffix(".json"), asdict(request))
        except OSError:
            content.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Say that no more will come."""
        with contextlib.suppress(OSError):
            (self.directory / CLOSED_FILE).touch()
        self._lock.close()

    def abandon(self) -> None:
        """In a forked child: let go without a word; the queue is the parent's."""
        self._lock.close()


def _keep(source: Path, content: Path, size: int) -> tuple[bool, bool, bytes | None]:
    """Keep what can be kept of a file.

    Returns:
        Whether nobody else writes it, whether it is in the queue, what was copied.
    """
    try:
        if size <= COPY_BYTES_MAX:
            data = source.read_bytes()
            content.write_bytes(data)
            return True, True, data
        if _clone(source, content):
            return True, True, None
        os.link(source, content)
    except OSError:  # another file system, or no space: the file itself has to do
        content.unlink(missing_ok=True)
        return False, False, None
    return False, True, None


def _clone(source: Path, content: Path) -> bool:
    with source.open("rb") as file, content.open("wb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, file.fileno())
        except OSError:
            pass
        else:
            return True
    content.unlink()
    return False


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that appears whole, or not at all."""
    draft = path.with_suffix(".draft")
    try:
        draft.write_text(json.dumps(content))
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


# ---- for whoever delivers a queue, or looks at it -------------------------------


def queues(spool_dir: Path) -> list[Path]:
    """The queues in a spool directory, oldest first; the directory itself if it is one."""
    if (spool_dir / QUEUE_FILE).exists():
        return [spool_dir]
    found = [path.parent for path in spool_dir.glob(f"{FOLDER}/*/{QUEUE_FILE}")]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def run_of(queue: Path) -> str:
    """The run a queue belongs to; by the queue's name where queue.json is damaged. Empty: none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((queue / QUEUE_FILE).read_bytes())["run_id"])
    named = queue.name.rpartition("-")[0]
    return named if is_identifier(named) else ""


def requests(queue: Path) -> Iterator[tuple[Path, Request]]:
    """The waiting requests, in the order of the calls, with their files.

    Those that are damaged are set aside as failed, with the content there is.
    """
    for file in sorted(queue.glob("[0-9]*.json")):
        try:
            request = Request(**json.loads(file.read_bytes()))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError):
            _set_aside(file)
            continue
        yield file, request


def _set_aside(file: Path) -> None:
    folder = file.parent / FAILED_FOLDER
    folder.mkdir(exist_ok=True)
    for each in (file.with_suffix(".content"), file):
        with contextlib.suppress(FileNotFoundError):
            each.rename(folder / each.name)


def check_content(request: Request) -> None:
    """Look whether a content that the queue owns is what was put there.

    Raises:
        OSError: it is not, or cannot be read.
    """
    crc32 = size = 0
    with Path(request.source).open("rb") as file:
        if request.crc32 is None:
            size = os.fstat(file.fileno()).st_size
        else:
            while data := file.read(COPY_BYTES_MAX):
                crc32, size = zlib.crc32(data, crc32), size + len(data)
    if request.size not in (-1, size) or request.crc32 not in (None, crc32):
        raise OSError("what the queue kept of it is damaged")


def settle(file: Path, *, failure: str = "") -> None:
    """Take a request, and what is kept of its content, out of the queue."""
    if failure:
        content = json.loads(file.read_text()) | {"failure": failure}
        with contextlib.suppress(OSError):
            _write_whole(file.parent / FAILED_FOLDER / file.name, content)
    file.unlink(missing_ok=True)
    file.with_suffix(".content").unlink(missing_ok=True)


def status_of(queue: Path, *, dropped: int = 0) -> ArtifactStatus:
    """How far a queue has come."""
    failed = []
    for file in sorted((queue / FAILED_FOLDER).glob("*.json")):
        try:
            content = json.loads(file.read_bytes())
            failed.append((content["path"], content["failure"]))
        except (OSError, ValueError, KeyError, TypeError):
            failed.append((file.name, f"damaged; what is left of it stays in {file.parent}"))
    note = Note.read(queue / STATUS_NOTE)
    return ArtifactStatus(
        stored=note.get("stored", 0),
        waits_for=note.get("waits_for", ""),
        pending=sum(1 for _ in queue.glob("[0-9]*.json")),
        failed=tuple(failed),
        dropped=dropped,
    )


def ended(queue: Path) -> bool:
    """Whether no more requests will come: the trainer said so, or is gone."""
    if (queue / CLOSED_FILE).exists():
        return True
    with spool_files.claimed(queue / TRAINER_LOCK) as free:
        return free


def remove(queue: Path) -> None:
    """Delete a queue that is done: queue.json first, so that half of it is none."""
    (queue / QUEUE_FILE).unlink(missing_ok=True)
    shutil.rmtree(queue, ignore_errors=True)
