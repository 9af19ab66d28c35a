"""How far a run's records have come: what `run.status()` and `finish` answer. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

FINISHED: Final = 2
FAILED: Final = 3
KILLED: Final = 4
"""End states, the numbers of RunState in run_service.proto."""

STATES: Final = {"finished": FINISHED, "failed": FAILED, "killed": KILLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Counts of one writer: this process's part of the run.

    Attributes:
        logged_records: records in the spool, sent or not; a log call is one,
            or one for each 8,192 points.
        committed_records: records that the gateway has committed.
        accepted_points, late_points, repeated_points, rejected_points: of the
            committed records; see WriterCounters in metric_service.proto.
        rejected_entries: params, tags and the like that the gateway did not
            take, for example a param that has another value already.
        rejections: samples, each with reason, key, step, points and detail.
        lost_records: records whose place in the spool became unreadable, or
            that a database restored from a backup, or failed over to a standby
            that lacked the last commits, no longer has.
        dropped_points, dropped_entries: what found no space on disk.
        refused_points: points and log calls that no gateway would accept (bad
            key, step or value); a warning named the first of each kind.
        refused_entries: likewise of params, tags and the like.
        connected: whether the sender has a stream now.
        done: everything is committed and the writer is finished.
        stopped: why the sender gave up; empty when it did not.
    """

    logged_records: int = 0
    committed_records: int = 0
    accepted_points: int = 0
    late_points: int = 0
    repeated_points: int = 0
    rejected_points: int = 0
    rejected_entries: int = 0
    rejections: tuple[Mapping[str, Any], ...] = ()
    lost_records: int = 0
    dropped_points: int = 0
    dropped_entries: int = 0
    refused_points: int = 0
    refused_entries: int = 0
    connected: bool = False
    done: bool = False
    stopped: str = ""

    @property
    def pending_records(self) -> int:
        """Records that are logged and not known to be committed."""
        return max(0, self.logged_records - self.committed_records)

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.accepted_points:,} points in {self.committed_records:,} records committed"]
        if self.pending_records:
            parts.append(f"{self.pending_records:,} records pending")
        if self.rejected_points:
            reasons = sorted({str(sample.get("reason")) for sample in self.rejections})
            parts.append(f"{self.rejected_points:,} points rejected ({', '.join(reasons)})")
        if self.rejected_entries:
            details = [str(sample.get("detail")) for sample in self.rejections]
            shown = next((text for text in reversed(details) if text.startswith("param")), "")
            parts.append(f"{self.rejected_entries:,} entries rejected{shown and f' ({shown})'}")
        for count, what in (
            (self.refused_points, "refused when logged"),
            (self.refused_entries, "entries refused"),
            (self.dropped_points, "points dropped for lack of disk"),
            (self.dropped_entries, "entries dropped for lack of disk"),
            (self.lost_records, "records lost"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        return ", ".join(parts)


@dataclass(slots=True, kw_only=True)
class LocalCounts:
    """What the trainer knows of its own calls; see RunStatus."""

    dropped_points: int = 0
    dropped_entries: int = 0
    refused_points: int = 0
    refused_entries: int = 0


def status_from_notes(
    sender: Mapping[str, Any], *, logged_records: int, local: LocalCounts
) -> RunStatus:
    """Joins what the sender noted with what the trainer knows."""
    return RunStatus(
        logged_records=logged_records,
        committed_records=min(sender.get("committed_sequence", 0), logged_records),
        accepted_points=sender.get("accepted_points", 0),
        late_points=sender.get("late_points", 0),
        repeated_points=sender.get("repeated_points", 0),
        rejected_points=sender.get("rejected_points", 0),
        rejected_entries=sender.get("rejected_entries", 0),
        rejections=tuple(sender.get("rejections", ())),
        lost_records=sender.get("lost_records", 0),
        connected=sender.get("connected", False),
        done=sender.get("done", False),
        stopped=sender.get("stopped", ""),
        **asdict(local),
    )
