"""One process's writer of a run: takes what is logged into the spool, and never waits.

Properties, each with a test:
- A call returns after one `write`; it raises nothing into training unless
  strict; what it cannot take it counts, and warns once of each kind.
- Any thread may log; a signal handler may log in the middle of a log call; a
  KeyboardInterrupt at any place leaves the spool sound.
- A forked child that logs becomes a writer of its own, with a spool and a
  sender of its own; one that does not costs nothing.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, SupportsIndex

from headrace import spool_files
from headrace.errors import InvalidMetadataError, InvalidMetricError, SpoolError
from headrace.facts import UNKNOWN_ORIGIN
from headrace.identifiers import new_identifier
from headrace.limits import STEP_MAX, STEP_MIN
from headrace.scalars import flatten, to_step
from headrace.sender_process import SenderProcess
from headrace.settings import Settings
from headrace.spool import SpoolWriter
from headrace.spool_files import WriterIdentity
from headrace.status import LocalCounts, RunStatus, status_from_notes

_logger: Final = logging.getLogger("headrace")

TICK_US: Final = 200_000
"""A log call wakes the sender at most this often; the sender looks by itself for as long after."""

ENSURE_TICKS: Final = 10
"""Every so many ticks a log call looks whether the sender still runs, and what it reports."""

DEATHS_TOLD: Final = 3
"""So many senders that die one after another are no accident: the trainer warns."""

DEFERRED_MAX: Final = 1_000
"""Calls that a signal handler makes in the middle of another one."""


class Recorder:
    """Owns the spool and the sender of one process. Made by `Run`.

    Attributes:
        identity: the writer; another one after a fork.
        finished: whether calls are refused.
    """

    def __init__(self, identity: WriterIdentity, settings: Settings) -> None:
        self.identity = identity
        self.finished = settings.mode == "disabled"
        self._settings = settings
        self._next_step = identity.resume_step or 0
        self._warned: set[str] = set()
        self._counts = LocalCounts()
        self._drop_reason = ""
        self._last_status = RunStatus(done=self.finished)
        self._lock = threading.RLock()
        self._writing = False
        self._unsure = False
        self._deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._tick_at_us = 0
        self._ticks = 0
        self._sender: SenderProcess | None = None
        self._spool: SpoolWriter | None = None
        self._pid = os.getpid()
        if not self.finished:
            self._open()

    def log(self, metrics: Mapping[str, Any], step: SupportsIndex | None) -> None:
        """See `Run.log`."""
        self._guarded(self._append, metrics, step)

    def write(self, entries: list[bytes]) -> None:
        """Records what is said of the run; see metadata_entries.py. Returns after one write."""
        if entries:
            self._guarded(self._append_metadata, entries)

    def end(self, state: int) -> bool:
        """Refuses what comes after and tells the sender how it ended; False when it had ended."""
        with self._lock:
            if self._pid != os.getpid() or self.finished:
                return False
            self.finished = True
            if self._unsure:
                self._repair()
            self._tell(state)
            return self._spool is not None

    def wait_until_done(self, deadline: float) -> None:
        """Waits until all is committed, the sender gave up, or the monotonic clock says so."""
        if self._sender is None:
            return
        wait_s = 0.005
        while time.monotonic() < deadline:
            status = self.status()
            if status.done or status.stopped:
                return
            self._ensure_sender(self._sender)
            time.sleep(min(wait_s, max(0.0, deadline - time.monotonic())))
            wait_s = min(wait_s * 1.5, 0.1)

    def close(self) -> RunStatus:
        """Lets go of the spool, which is deleted when it is delivered; answers the last status."""
        self._last_status = status = self.status()
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()
        if self._sender is not None:
            self._sender.release(wait_s=1.0 if status.done or status.stopped else 0.0)
            self._sender = None
        if status.done and spool is not None:
            spool_files.remove_spool(spool.directory)
        return status

    def status(self) -> RunStatus:
        """See `Run.status`."""
        spool = self._spool
        if spool is None or self._pid != os.getpid():
            counts = self._counts
            return replace(
                self._last_status,
                dropped_points=counts.dropped_points,
                dropped_entries=counts.dropped_entries,
                refused_points=counts.refused_points,
                refused_entries=counts.refused_entries,
            )
        return status_from_notes(
            spool_files.Note.read(spool.directory / spool_files.STATUS_NOTE),
            logged_records=spool.next_sequence - 1,
            local=self._counts,
        )

    @property
    def directory(self) -> Path | None:
        """The directory of the spool; None when there is none."""
        return None if self._spool is None else self._spool.directory

    def become_writer(self) -> None:
        """In a forked child, at its first call: a writer of its own in the same run."""
        with self._lock:
            if self._pid == os.getpid():
                return
            self._pid = os.getpid()
            self._counts = LocalCounts()
            if self.finished:
                return
            self.identity = replace(
                self.identity,
                writer_id=new_identifier(),
                incarnation=new_identifier(),
                origin=UNKNOWN_ORIGIN,
                facts={},
                system_metrics_interval_s=0.0,
                ends_run=False,
                forked=True,
                trainer_pid=self._pid,
                created_us=time.time_ns() // 1_000,
            )
            self._open()

    def after_fork_in_child(self) -> None:
        """Closes what is the parent's, resets what its threads held."""
        self._lock = threading.RLock()
        self._writing = self._unsure = False
        self._deferred = []
        if self._sender is not None:
            self._sender.forget()
            self._sender = None
        if self._spool is not None:
            self._spool.abandon()
            self._spool = None

    def refuse_entry(self, text: str) -> None:
        """Counts metadata that no gateway would accept; warns of the first.

        Raises:
            InvalidMetadataError: when strict.
        """
        if self._settings.mode == "disabled":
            return
        self._counts.refused_entries += 1
        if self._settings.strict:
            raise InvalidMetadataError(text)
        self.warn("metadata", f"not recorded: {text}")

    def changed_param(self, text: str) -> None:
        """Warns of a param that this process set to another value before; the gateway refuses it.

        Raises:
            InvalidMetadataError: when strict.
        """
        if self._settings.mode == "disabled":
            return
        if self._settings.strict:
            raise InvalidMetadataError(text)
        self.warn("param", text)

    def warn(self, kind: str, text: str) -> None:
        """Warns once of a kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            _logger.warning("headrace: %s (said once; run.status() counts)", text)

    def _guarded(self, append: Callable[..., None], *arguments: Any) -> None:
        """Runs one call at a time, and what signal handlers deferred meanwhile."""
        with self._lock:
            if self._writing:  # a signal handler, in the middle of a call of this thread
                if len(self._deferred) < DEFERRED_MAX:
                    first = arguments[0]
                    kept = dict(first) if isinstance(first, Mapping) else first
                    self._deferred.append((append, (kept, *arguments[1:])))
                return
            self._writing = True
            sound = False
            try:
                if self._pid != os.getpid():
                    self.become_writer()
                if self._unsure:
                    self._repair()
                append(*arguments)
                while self._deferred:
                    deferred, its_arguments = self._deferred.pop(0)
                    deferred(*its_arguments)
                sound = True
            except (
                InvalidMetadataError,
                InvalidMetricError,
                SpoolError,
            ):  # strict; the spool is as it was
                sound = True
                raise
            finally:
                self._writing = False
                self._unsure = not sound

    def _append(self, metrics: Mapping[str, Any], step: SupportsIndex | None) -> None:
        spool = self._spool
        if spool is None or self.finished:
            self._refuse_call(metrics)
            return
        now_us = time.time_ns() // 1_000
        if step is None:
            number = self._next_step
        elif type(step) is int and STEP_MIN <= step <= STEP_MAX:
            number = step
        else:
            try:
                number = to_step(step)
            except InvalidMetricError as error:
                self._refuse("step", str(error), _count(metrics))
                return
        taken = False
        try:
            layout = spool.layouts.get(tuple(metrics))
            if layout is not None:
                spool.append(layout, number, now_us, metrics.values())
                taken = True
        except OSError as error:
            self._drop(error, points=_count(metrics))
            taken = True
        except Exception:  # noqa: S110 - a value that is no number: find out which, below
            pass
        if not taken:
            self._append_checked(spool, metrics, number, now_us)
        if number >= self._next_step:
            self._next_step = number + 1
        if now_us >= self._tick_at_us or now_us < self._tick_at_us - TICK_US:
            self._tick(now_us)

    def _append_checked(self, spool: SpoolWriter, metrics: Any, step: int, now_us: int) -> None:
        """The slow path: looks at every key and value, and takes those that are sound."""
        if not isinstance(metrics, Mapping):
            kind = type(metrics).__name__
            self._refuse("metrics", f"metrics must be a mapping of keys to numbers, not {kind}")
            return
        points = flatten(metrics, self._refuse)
        if not points:
            return
        keys = tuple(points)
        try:
            layout = spool.layouts.get(keys) or spool.define(keys)
        except OSError as error:
            self._drop(error, points=len(points))
            return
        except InvalidMetricError as error:  # too many keys: those known already still count
            known = spool.known_keys(keys)
            self._refuse("keys", str(error), len(keys) - len(known))
            if not known:
                return
            points = {key: points[key] for key in known}
            layout = spool.define(known)
        try:
            spool.append(layout, step, now_us, points.values())
        except OSError as error:
            self._drop(error, points=len(points))

    def _append_metadata(self, entries: list[bytes]) -> None:
        spool = self._spool
        if self._settings.mode == "disabled":
            return
        if self.finished:
            self.refuse_entry("the run is finished")
            return
        now_us = time.time_ns() // 1_000
        try:
            if spool is None:
                raise OSError(self._drop_reason or "there is no spool")
            spool.append_metadata(entries, now_us)
        except OSError as error:
            self._drop(error, entries=len(entries))
            return
        self._tick(now_us)

    def _tick(self, now_us: int) -> None:
        """Now and then: wakes the sender, looks whether it lives and what it reports."""
        self._tick_at_us = now_us + TICK_US
        if self._sender is None:
            return
        self._sender.wake()
        self._ticks += 1
        if self._ticks % ENSURE_TICKS == 0:
            self._ensure_sender(self._sender)
            self.report_rejections(self.status())

    def _ensure_sender(self, sender: SenderProcess) -> None:
        """Starts the sender again if it died; warns of one that gave up or dies each time."""
        if not sender.ensure():
            self.warn("stopped", f"the sender stopped: {self.status().stopped}")
        elif sender.deaths >= DEATHS_TOLD:
            died = f"the sender died {sender.deaths} times in a row"
            self.warn("dying", f"{died}; {sender.log} says why")

    def report_rejections(self, status: RunStatus) -> None:
        """Warns once when the gateway refused metadata."""
        if status.rejected_entries:
            samples = [sample for sample in status.rejections if not sample.get("points")]
            detail = "see run.status()"
            if samples:
                detail = f"{samples[-1].get('reason')}: {samples[-1].get('detail')}"
            self.warn("rejected", f"the gateway did not record some metadata; {detail}")

    def _tell(self, state: int = 0) -> None:
        """Writes the trainer's note and wakes the sender."""
        spool = self._spool
        if spool is None:
            return
        with contextlib.suppress(OSError):
            spool.note(
                {
                    "state": state,
                    "last_sequence": spool.next_sequence - 1,
                    "dropped_points": self._counts.dropped_points,
                    "dropped_entries": self._counts.dropped_entries,
                    "drop_reason": self._drop_reason,
                    "refused_points": self._counts.refused_points,
                    "last_step": max(self._next_step - 1, 0),
                    "time_us": time.time_ns() // 1_000,
                }
            )
        if self._sender is not None:
            self._sender.wake()

    def _refuse(self, kind: str, text: str, points: int = 1) -> None:
        """Counts what no gateway would accept; warns of the first of its kind."""
        self._counts.refused_points += points
        if self._settings.strict:
            raise InvalidMetricError(text)
        self.warn(kind, f"not logged: {text}")

    def _refuse_call(self, metrics: Mapping[str, Any]) -> None:
        if self._settings.mode == "disabled":
            return
        if self.finished:
            self._refuse("finished", "the run is finished", _count(metrics))
        else:
            error = OSError(self._drop_reason or "there is no spool")
            self._drop(error, points=_count(metrics))

    def _drop(self, error: OSError, *, points: int = 0, entries: int = 0) -> None:
        """Counts what found no space; training goes on."""
        self._counts.dropped_points += points
        self._counts.dropped_entries += entries
        self._drop_reason = str(error)[:200]
        self._tell()
        if self._settings.strict:
            raise SpoolError(f"the record was not written: {error}") from error
        what = "points" if points or not entries else "metadata"
        self.warn(
            "disk",
            f"{what} are being dropped, training goes on; the spool cannot take them: {error}",
        )

    def _open(self) -> None:
        """A spool and, when online, its sender. Without a spool, log calls drop and count."""
        try:
            self._spool = SpoolWriter(
                self._settings.spool_dir,
                self.identity,
                spool_bytes_max=self._settings.spool_bytes_max,
            )
        except OSError as error:
            self._drop(error)
            return
        if self._settings.mode == "online":
            self._sender = SenderProcess(self._spool.directory, self._settings)
            try:
                self._sender.start()
            except OSError as error:
                self.warn("sender", f"no sender could be started yet: {error}")

    def _repair(self) -> None:
        if self._spool is not None:
            try:
                self._spool.repair()
            except OSError as error:
                self._drop(error)
        self._unsure = False


def _count(metrics: object) -> int:
    """How many points a call that is refused or dropped counts for."""
    return len(metrics) if isinstance(metrics, Mapping) else 1
