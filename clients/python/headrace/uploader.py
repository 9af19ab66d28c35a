"""Stores the artifacts of one queue: a program of its own, `python -m headrace.uploader QUEUE`.

It lives as long as there is something to store or the trainer may add more,
tries again for as long as a failure may pass, and outlives the trainer. What
people have to put right (a token, a permission, a run that no sender creates)
is waited for while the trainer lives; then the queue is left for `headrace
sync`. Requests for one path are stored in the order of the calls.
"""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from pathlib import Path
from typing import Final

from headrace import artifact_queue as queues
from headrace.artifact_errors import ArtifactError, FileChangedError
from headrace.artifact_queue import Request
from headrace.channel import call_metadata, open_blocking_channel
from headrace.errors import HeadraceError
from headrace.settings import Settings, load_settings
from headrace.spool_files import QUEUE_FILE, Note, claimed
from headrace.transfer_calls import no_progress
from headrace.transfers import Progress, Transfers

POLL_S: Final = 0.1
BATCH: Final = 16
PARALLEL: Final = 4
PATIENCE_S: Final = 60.0
"""Within one transfer; the uploader itself goes on for ever."""
WAIT_S: Final = 1.0
WAIT_MAX_S: Final = 10.0
"""Between attempts that failed, doubled from one to the next."""
RUN_PATIENCE_S: Final = 300.0
"""A sender may still be about to create the run: many times its longest wait between attempts."""
_WAITS_FOR_CHARACTERS_MAX: Final = 500

_HOPELESS: Final = frozenset(
    {
        "MALFORMED_MESSAGE",
        "FIELD_REQUIRED",
        "FIELD_INVALID",
        "LIMIT_EXCEEDED",
        "RUN_PURGED",
        "ARTIFACT_PATH_INVALID",
        "ARTIFACT_PATH_CONFLICT",
        "DIGEST_MISMATCH",
    }
)
"""Reasons that lie in the request itself. Whatever else is wrong may be put right,
at the gateway or at S3, and must not cost what the queue holds."""


class _Outcome(Enum):
    STORED = auto()
    FAILED = auto()
    NO_RUN = auto()
    """Its run is unknown: a sender may still be about to create it."""
    LATER = auto()
    """A failure that may pass by itself."""
    HELP = auto()
    """A failure that somebody has to put right."""


class Uploader:
    """Empties one queue."""

    def __init__(
        self, queue: Path, settings: Settings, *, progress: Progress = no_progress
    ) -> None:
        self._queue = queue
        self._run_id = queues.run_of(queue)
        if not self._run_id:
            raise HeadraceError(f"{queue / QUEUE_FILE} is damaged: it names no run")
        self._settings = settings
        self._progress = progress
        self._note = Note(queue / queues.STATUS_NOTE)
        self._stored: int = Note.read(queue / queues.STATUS_NOTE).get("stored", 0)
        self._waits_for = ""
        self._counting = threading.Lock()

    def run(self, *, deadline: float | None = None) -> bool:
        """Store what waits until no more can come.

        Args:
            deadline: on the monotonic clock; None: for ever, and wait for
                more while the trainer lives.

        Returns:
            Whether the queue is empty.
        """
        channel = open_blocking_channel(self._settings)
        patience_s = PATIENCE_S if deadline is None else max(0.0, deadline - time.monotonic())
        metadata = call_metadata(self._settings)
        try:
            with Transfers(channel, metadata=metadata, patience_s=patience_s) as transfers:
                return self._run(transfers, once=deadline is not None)
        finally:
            self._note.close()
            channel.close()

    def _run(self, transfers: Transfers, *, once: bool) -> bool:
        wait_s = WAIT_S
        unknown_since: float | None = None
        while True:
            ended = queues.ended(self._queue)  # before looking: nothing comes after it
            batch = self._next_batch()
            if not batch:
                if ended or once:
                    return True
                time.sleep(POLL_S)
                continue
            outcomes = self._store_all(transfers, batch)
            if outcomes <= {_Outcome.STORED, _Outcome.FAILED}:
                wait_s = WAIT_S
                continue
            if _Outcome.NO_RUN not in outcomes:
                unknown_since = None
            elif unknown_since is None:
                unknown_since = time.monotonic()
            elif time.monotonic() - unknown_since > RUN_PATIENCE_S:
                outcomes.add(_Outcome.HELP)
            if once or (ended and _Outcome.HELP in outcomes):
                return False
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, WAIT_MAX_S)

    def _next_batch(self) -> list[tuple[Path, Request]]:
        """The oldest requests, of which no two have one path."""
        batch: list[tuple[Path, Request]] = []
        paths: set[str] = set()
        for file, request in queues.requests(self._queue):
            if request.path in paths or len(batch) == BATCH:
                break
            paths.add(request.path)
            batch.append((file, request))
        return batch

    def _store_all(self, transfers: Transfers, batch: list[tuple[Path, Request]]) -> set[_Outcome]:
        """Store a batch and note how far it went."""
        self._waits_for = ""
        with ThreadPoolExecutor(PARALLEL) as executor:
            outcomes = list(executor.map(lambda item: self._store(transfers, *item), batch))
        self._write_note()
        return set(outcomes)

    def _write_note(self, *, stored: int = 0) -> None:
        with self._counting:
            self._stored += stored
            waits_for = self._waits_for[:_WAITS_FOR_CHARACTERS_MAX]
            self._note.write({"stored": self._stored, "waits_for": waits_for})

    def _store(self, transfers: Transfers, file: Path, request: Request) -> _Outcome:
        try:
            source = Path(request.source)
            if request.owned:
                queues.check_content(request)
            else:
                status = source.stat()
                if (status.st_size, status.st_mtime_ns) != (request.size, request.modified_ns):
                    raise FileChangedError(
                        "the file was changed after it was logged", reason="DIGEST_MISMATCH"
                    )
            transfers.upload(
                self._run_id,
                source,
                request.path,
                content_type=request.content_type,
                progress=self._progress,
            )
        except ArtifactError as error:
            if error.reason not in _HOPELESS:
                _say(f"{request.path}: {error}; it is tried again")
                self._waits_for = str(error)
                if error.reason == "RUN_NOT_FOUND":
                    return _Outcome.NO_RUN
                return _Outcome.LATER if error.retry else _Outcome.HELP
            failure = str(error)
        except OSError as error:
            failure = f"{request.logged_as}: {error.strerror or error}"
        else:
            self._write_note(stored=1)  # before: a trainer that sees nothing pending reads it
            queues.settle(file)
            return _Outcome.STORED
        _say(f"{request.path} failed: {failure}")
        queues.settle(file, failure=failure)
        return _Outcome.FAILED


def deliver(
    queue: Path,
    settings: Settings,
    *,
    deadline: float | None,
    progress: Progress = no_progress,
) -> bool | None:
    """Empty a queue unless another process does; remove it when nothing is left to say.

    Returns:
        Whether it is empty; None when another process is at work on it.
    """
    with claimed(queue / queues.UPLOADER_LOCK) as mine:
        if not mine:
            return None
        empty = Uploader(queue, settings, progress=progress).run(deadline=deadline)
        status = queues.status_of(queue)
        # A trainer that waits in `finish` reads the status, and removes the queue itself.
        with claimed(queue / queues.TRAINER_LOCK) as trainer_gone:
            if empty and not status.failed and trainer_gone:
                queues.remove(queue)
    return empty


def _say(text: str) -> None:
    sys.stderr.write(time.strftime("%Y-%m-%d %H:%M:%S ") + text + "\n")
    sys.stderr.flush()


def main() -> None:
    """The program; its settings come in the environment."""
    deliver(Path(sys.argv[1]), load_settings(), deadline=None)


if __name__ == "__main__":
    main()
