"""The sender's note to the trainer: what is committed, what was rejected, why it stopped."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace import spool_files
from headrace.spool_files import Note
from headrace.spool_reader import Damage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.v1.metric_service_pb2 import Rejection, WriterCounters

WRITE_INTERVAL_S: Final = 0.2
"""Progress is written at most this often; ends are written at once."""

SAMPLES_MAX: Final = 8
TEXT_CHARACTERS_MAX: Final = 200
"""Samples of rejections kept, and characters of each of their texts; what does not fit goes."""


class SenderStatus:
    """Collects and writes the note. One owner: the sender.

    Attributes:
        committed_sequence: the watermark that the gateway told last.
        stopped: why the sender gave up; empty while it has not.
    """

    def __init__(self, directory: Path) -> None:
        self.committed_sequence = 0
        self.stopped = ""
        self.accepted_points = 0
        self.rejected_points = 0
        self._counters: dict[str, int] = {}
        self._samples: list[dict[str, Any]] = []
        self._connected = False
        self._done = False
        self._note = Note(directory / spool_files.STATUS_NOTE)
        self._written_at = float("-inf")
        self._changed = True
        self._damaged_records = 0

    def committed(self, sequence: int, counters: "WriterCounters") -> None:
        """Takes in an ack."""
        self.committed_sequence = sequence
        self.accepted_points = counters.accepted_points
        self.rejected_points = counters.rejected_points
        self._counters = {
            "late_points": counters.late_points,
            "repeated_points": counters.repeated_points,
            "lost_records": counters.lost_records,
            "rejected_entries": counters.rejected_entries,
        }
        self._changed = True

    def rejected(self, reasons: "Iterable[tuple[str, Rejection]]") -> None:
        """Takes in samples, each with its reason's name; keeps the last ones.

        To be called before `committed` takes in the watermark that came with
        them: what stands at or below the one before was told with an earlier ack.
        """
        for name, sample in reasons:
            if sample.sequence <= self.committed_sequence:
                continue
            self._samples.append(
                {
                    "reason": name,
                    "key": sample.key[:TEXT_CHARACTERS_MAX],
                    "step": sample.step,
                    "points": sample.points,
                    "detail": sample.detail[:TEXT_CHARACTERS_MAX],
                }
            )
            self._changed = True
        del self._samples[:-SAMPLES_MAX]

    def damaged(self, damages: list[Damage]) -> None:
        """Takes in what could not be read."""
        self._damaged_records = sum(damage.lost_records for damage in damages)
        self._changed = True

    def connection(self, connected: bool) -> None:
        """A stream is open, or none is."""
        self._changed = self._changed or connected != self._connected
        self._connected = connected

    def end(self, *, done: bool, stopped: str = "") -> None:
        """The last word."""
        self._done = done
        self._connected = False
        self.stopped = stopped[: 2 * TEXT_CHARACTERS_MAX]
        self._changed = True
        self.write(force=True)

    def write(self, *, force: bool = False) -> None:
        """Writes the note if something changed and the last time is long enough ago."""
        now = time.monotonic()
        if not self._changed or (now < self._written_at + WRITE_INTERVAL_S and not force):
            return
        self._written_at = now
        self._changed = False
        content: dict[str, Any] = {
            "committed_sequence": self.committed_sequence,
            "accepted_points": self.accepted_points,
            "rejected_points": self.rejected_points,
            **self._counters,
            "connected": self._connected,
            "done": self._done,
            "stopped": self.stopped,
            "time_us": time.time_ns() // 1_000,
        }
        content["lost_records"] = content.get("lost_records", 0) + self._damaged_records
        samples = list(self._samples)
        while not self._note.fits({**content, "rejections": samples}):
            samples.pop(0)
        self._note.write({**content, "rejections": samples})

    def close(self) -> None:
        """Closes the note."""
        self._note.close()
