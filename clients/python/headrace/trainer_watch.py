"""Watches the trainer of a spool from outside: does it live, has it finished, how."""

from pathlib import Path

from headrace import spool_files
from headrace.spool_files import Note, ProcessLock
from headrace.status import FAILED


class TrainerWatch:
    """What is known of the trainer.

    Attributes:
        ended: no process writes this spool any more, or the run was finished.
        state: how it ended, a RunState number; FAILED when it died without a
            word. Meaningful once `ended`.
        dropped_points: points that found no space.
        last_step, time_us: the greatest step logged and when the note was
            written; they date the record of the drops.
    """

    def __init__(self, directory: Path) -> None:
        self.ended = False
        self.state = FAILED
        self.dropped_points = 0
        self.last_step = 0
        self.time_us = 0
        self._path = directory / spool_files.TRAINER_NOTE
        self._lock = ProcessLock(directory / spool_files.TRAINER_LOCK)
        self._gone = False

    def look(self) -> bool:
        """Looks again; answers `ended`. What was written before it ended is readable afterwards."""
        if self.ended:
            return True
        gone = self._lock.acquire()
        note = Note.read(self._path)
        self.dropped_points = note.get("dropped_points", self.dropped_points)
        self.last_step = note.get("last_step", self.last_step)
        self.time_us = note.get("time_us", self.time_us)
        if note.get("state"):
            self.state = note["state"]
            self.ended = True
        self._gone = gone
        self.ended = self.ended or gone
        return self.ended

    def gone(self) -> bool:
        """Whether the trainer let go of the spool altogether: nobody waits for its status."""
        self._gone = self._gone or self._lock.acquire()
        return self._gone

    def close(self) -> None:
        """Lets go of the lock, if it fell to us."""
        self._lock.close()
