"""Stores the artifacts of one queue: a program of its own, `python -m headrace.uploader QUEUE`.

It lives as long as there is something to store or the trainer may add more,
tries again for as long as a failure may pass, and outlives the trainer.
Requests for one path are stored in the order of the calls.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from headrace import artifact_queue as queues
from headrace.artifact_errors import ArtifactError, FileChangedError
from headrace.artifact_queue import Request
from headrace.channel import open_blocking_channel
from headrace.settings import Settings, load_settings
from headrace.spool_files import Note, claimed
from headrace.transfers import Progress, Transfers

POLL_S: Final = 0.1
BATCH: Final = 16
PARALLEL: Final = 4
PATIENCE_S: Final = 60.0
"""Within one transfer; the uploader itself goes on for ever."""


class Uploader:
    """Empties one queue."""

    def __init__(
        self, queue: Path, settings: Settings, *, progress: Progress | None = None
    ) -> None:
        self._queue = queue
        self._run_id = queues.run_of(queue)
        self._settings = settings
        self._progress = progress
        self._note = Note(queue / queues.STATUS_NOTE)
        self._stored: int = Note.read(queue / queues.STATUS_NOTE).get("stored", 0)

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
        try:
            with Transfers(channel, token=self._settings.token, patience_s=patience_s) as transfers:
                while True:
                    ended = queues.ended(self._queue)  # before looking: nothing comes after it
                    batch = self._next_batch()
                    if not batch and (ended or deadline is not None):
                        return True
                    if batch and not self._store_all(transfers, batch) and deadline is not None:
                        return False
                    if not batch:
                        time.sleep(POLL_S)
        finally:
            self._note.close()
            channel.close()

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

    def _store_all(self, transfers: Transfers, batch: list[tuple[Path, Request]]) -> bool:
        """Store a batch; return whether every request of it was settled."""
        with ThreadPoolExecutor(PARALLEL) as executor:
            settled = list(executor.map(lambda item: self._store(transfers, *item), batch))
        self._stored += settled.count("stored")
        self._note.write({"stored": self._stored})
        return "" not in settled

    def _store(self, transfers: Transfers, file: Path, request: Request) -> str:
        """Store one; return `stored`, `failed`, or "" when it has to be tried again."""
        try:
            source = Path(request.source)
            if not request.owned:
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
                progress=self._progress or _nothing,
            )
        except ArtifactError as error:
            # A sender may still be about to create the run.
            if error.retry or error.reason == "RUN_NOT_FOUND":
                _say(f"{request.path}: {error}; it is tried again")
                time.sleep(1.0)
                return ""
            failure = str(error)
        except OSError as error:
            failure = f"{request.logged_as}: {error.strerror or error}"
        else:
            queues.settle(file)
            return "stored"
        _say(f"{request.path} failed: {failure}")
        queues.settle(file, failure=failure)
        return "failed"


def deliver(queue: Path, settings: Settings, *, deadline: float | None) -> bool:
    """Empty a queue unless another process does; remove it when nothing is left to say.

    Returns:
        Whether it is empty.
    """
    with claimed(queue / queues.UPLOADER_LOCK) as mine:
        if not mine:
            return False
        empty = Uploader(queue, settings).run(deadline=deadline)
        status = queues.status_of(queue)
        # A trainer that waits in `finish` reads the status, and removes the queue itself.
        with claimed(queue / queues.TRAINER_LOCK) as trainer_gone:
            if empty and not status.failed and trainer_gone:
                queues.remove(queue)
    return empty


def _say(text: str) -> None:
    sys.stderr.write(time.strftime("%Y-%m-%d %H:%M:%S ") + text + "\n")
    sys.stderr.flush()


def _nothing(_: int) -> None:
    pass


def main() -> None:
    """The program; its settings come in the environment."""
    deliver(Path(sys.argv[1]), load_settings(), deadline=None)


if __name__ == "__main__":
    main()
