"""A run as the training process sees it: `log` into the spool, never wait for anything else.

Properties, each with a test:
- `log` returns after one `write`; it raises nothing into training unless
  strict; what it cannot take it counts, and warns once of each kind.
- Any thread may log; a signal handler may log in the middle of a log call; a
  KeyboardInterrupt at any place leaves the spool sound.
- A forked child that logs becomes a writer of its own, with a spool and a
  sender of its own; one that does not costs nothing.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self, SupportsIndex

from headrace import spool_files
from headrace.artifact_logging import ArtifactLog
from headrace.errors import HeadraceError, InvalidMetricError, SpoolError
from headrace.identifiers import new_identifier
from headrace.limits import STEP_MAX, STEP_MIN
from headrace.run_artifacts import ArtifactMethods
from headrace.scalars import flatten, to_step
from headrace.sender_process import SenderProcess
from headrace.settings import Settings
from headrace.spool import SpoolWriter
from headrace.spool_files import WriterIdentity
from headrace.status import STATES, RunStatus, status_from_notes

_logger: Final = logging.getLogger("headrace")

TICK_US: Final = 200_000
"""A log call wakes the sender at most this often; the sender looks by itself for as long after."""

ENSURE_TICKS: Final = 10
"""Every so many ticks a log call looks whether the sender still runs."""

DEFERRED_MAX: Final = 1_000
"""Log calls that a signal handler makes in the middle of another one."""


class Run(ArtifactMethods):
    """One process's part of a run. Made by `headrace.init`.

    Attributes:
        id: the run's id, 32 lower-case hex digits.
        rank, world_size, attempt: this process within its job.
        spool: the directory of this process's spool; None when there is none.
    """

    def __init__(self, identity: WriterIdentity, settings: Settings, *, world_size: int) -> None:
        self.id = identity.run_id
        self.rank = identity.rank
        self.world_size = world_size
        self.attempt = identity.attempt
        self._identity = identity
        self._settings = settings
        self._next_step = identity.resume_step or 0
        self._artifacts = ArtifactLog(identity.run_id, settings)
        self._finished = settings.mode == "disabled"
        self._warned: set[str] = set()
        self._dropped_points = 0
        self._refused_points = 0
        self._drop_reason = ""
        self._last_status = RunStatus(done=self._finished)
        self._lock = threading.RLock()
        self._writing = False
        self._unsure = False
        self._deferred: list[tuple[Mapping[str, Any], SupportsIndex | None]] = []
        self._tick_at_us = 0
        self._ticks = 0
        self._sender: SenderProcess | None = None
        self._spool: SpoolWriter | None = None
        self._pid = os.getpid()
        if not self._finished:
            self._open()
        _runs.add(self)

    def log(self, metrics: Mapping[str, Any], step: SupportsIndex | None = None) -> None:
        """Records one step's values. Returns after one write to the spool.

        Args:
            metrics: key → number; nested mappings become `a/b` keys. Ints,
                floats, bools, and one-element arrays of any library; NaN and
                infinities are kept. Any number of keys.
            step: an integer in [-2^62, 2^62), in any order, repeats allowed;
                None: one more than the greatest step logged so far by this
                process (from `resume_step`, or 0).

        Raises:
            InvalidMetricError: only when strict: a key, value or step that no
                gateway would accept.
            SpoolError: only when strict: the record could not be written.
        """
        with self._lock:
            if self._writing:  # a signal handler, in the middle of a log call of this thread
                if len(self._deferred) < DEFERRED_MAX:
                    self._deferred.append((dict(metrics), step))
                return
            self._writing = True
            sound = False
            try:
                if self._pid != os.getpid():
                    self._become_writer()
                if self._unsure:
                    self._repair()
                self._append(metrics, step)
                while self._deferred:
                    self._append(*self._deferred.pop(0))
                sound = True
            except (InvalidMetricError, SpoolError):  # strict; the spool is as it was
                sound = True
                raise
            finally:
                self._writing = False
                self._unsure = not sound

    def _queue_artifact(self, queue: Callable[[], str]) -> None:
        if self._settings.mode == "disabled":
            return
        with self._lock:
            if self._pid != os.getpid():
                self._become_writer()
            try:
                fault = "the run is finished" if self._finished else queue()
            except HeadraceError as error:
                fault = str(error)
            except Exception as error:  # of a figure or a table: training goes on
                fault = f"{type(error).__name__}: {error}"
        if fault:
            if self._settings.strict:
                raise HeadraceError(f"the artifact is not logged: {fault}")
            self._warn("artifact", f"an artifact is not logged: {fault}")

    def finish(self, timeout: float | None = None, *, state: str = "finished") -> RunStatus:
        """Ends this process's part and waits, for a bounded time, until it is committed.

        What is not committed by then stays in the spool; the sender goes on,
        and `headrace sync` sends it if the sender dies too. Further log calls
        are refused. Calling it again answers the same.

        Args:
            timeout: seconds; None: HEADRACE_FINISH_TIMEOUT_S, 30 by default.
            state: `finished`, `failed` or `killed`; for the run when this is
                its rank 0.

        Raises:
            ValueError: another state.
        """
        if state not in STATES:
            raise ValueError(f"state is {state!r}; it must be one of {sorted(STATES)}")
        with self._lock:
            if self._pid != os.getpid() or self._finished:
                return self.status()
            self._finished = True
            if self._unsure:
                self._repair()
            spool = self._spool
            if spool is None:
                return self.status()
            self._tell(STATES[state])
        limit_s = self._settings.finish_timeout_s if timeout is None else max(0.0, timeout)
        deadline = time.monotonic() + limit_s
        try:
            self._wait_until_done(deadline)
        finally:
            self._finish_artifacts(deadline)
            self._last_status = status = self.status()
            self._spool = None
            spool.close()
            if self._sender is not None:
                self._sender.release(wait_s=1.0 if status.done or status.stopped else 0.0)
                self._sender = None
            if status.done:
                spool_files.remove_spool(spool.directory)
            self._report(status, spool)
        return status

    def status(self) -> RunStatus:
        """How far this process's records have come. Asks no server: reads the sender's note."""
        spool = self._spool
        if spool is None or self._pid != os.getpid():
            return replace(
                self._last_status,
                dropped_points=self._dropped_points,
                refused_points=self._refused_points,
            )
        return status_from_notes(
            spool_files.Note.read(spool.directory / spool_files.STATUS_NOTE),
            logged_records=spool.next_sequence - 1,
            dropped_points=self._dropped_points,
            refused_points=self._refused_points,
        )

    @property
    def spool(self) -> os.PathLike[str] | None:
        """The directory of this process's spool."""
        return None if self._spool is None else self._spool.directory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finishes: `failed` after an exception, `killed` after a KeyboardInterrupt."""
        if kind is None or (isinstance(error, SystemExit) and error.code in {None, 0}):
            self.finish()
        else:
            self.finish(state="killed" if issubclass(kind, KeyboardInterrupt) else "failed")

    def _append(self, metrics: Mapping[str, Any], step: SupportsIndex | None) -> None:
        spool = self._spool
        if spool is None or self._finished:
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
                self._refuse("step", str(error), len(metrics))
                return
        taken = False
        try:
            layout = spool.layouts.get(tuple(metrics))
            if layout is not None:
                spool.append(layout, number, now_us, metrics.values())
                taken = True
        except OSError as error:
            self._drop(error, len(metrics))
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
            self._drop(error, len(points))
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
            self._drop(error, len(points))

    def _tick(self, now_us: int) -> None:
        """Now and then: wakes the sender, looks whether it lives."""
        self._tick_at_us = now_us + TICK_US
        if self._sender is not None:
            self._sender.wake()
            self._ticks += 1
            if self._ticks % ENSURE_TICKS == 0 and not self._sender.ensure():
                self._warn("stopped", f"the sender stopped: {self.status().stopped}")

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
                    "dropped_points": self._dropped_points,
                    "drop_reason": self._drop_reason,
                    "refused_points": self._refused_points,
                    "last_step": max(self._next_step - 1, 0),
                    "time_us": time.time_ns() // 1_000,
                }
            )
        if self._sender is not None:
            self._sender.wake()

    def _refuse(self, kind: str, text: str, points: int = 1) -> None:
        """Counts what no gateway would accept; warns of the first of its kind."""
        self._refused_points += points
        if self._settings.strict:
            raise InvalidMetricError(text)
        self._warn(kind, f"not logged: {text}")

    def _refuse_call(self, metrics: Mapping[str, Any]) -> None:
        if self._settings.mode == "disabled":
            return
        if self._finished:
            self._refuse("finished", "the run is finished", len(metrics))
        else:
            self._drop(OSError(self._drop_reason or "there is no spool"), len(metrics))

    def _drop(self, error: OSError, points: int) -> None:
        """Counts what found no space; training goes on."""
        self._dropped_points += points
        self._drop_reason = str(error)[:200]
        self._tell()
        if self._settings.strict:
            raise SpoolError(f"the record was not written: {error}") from error
        self._warn(
            "disk",
            f"points are being dropped, training goes on; the spool cannot take them: {error}",
        )

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _logger.warning("headrace: %s (said once; run.status() counts)", text)

    def _open(self) -> None:
        """A spool and, when online, its sender. Without a spool, log calls drop and count."""
        try:
            self._spool = SpoolWriter(
                self._settings.spool_dir,
                self._identity,
                spool_bytes_max=self._settings.spool_bytes_max,
            )
        except OSError as error:
            self._drop(error, 0)
            return
        if self._settings.mode == "online":
            self._sender = SenderProcess(self._spool.directory, self._settings)
            try:
                self._sender.start()
            except OSError as error:
                self._warn("sender", f"no sender could be started yet: {error}")

    def _repair(self) -> None:
        if self._spool is not None:
            try:
                self._spool.repair()
            except OSError as error:
                self._drop(error, 0)
        self._unsure = False

    def _after_fork_in_child(self) -> None:
        """Runs in every forked child: closes the parent's, resets what its threads held."""
        self._lock = threading.RLock()
        self._writing = self._unsure = False
        self._deferred = []
        if self._sender is not None:
            self._sender.forget()
            self._sender = None
        if self._spool is not None:
            self._spool.abandon()
            self._spool = None
        self._artifacts.forget()

    def _become_writer(self) -> None:
        """In a forked child, at its first log call: a writer of its own in the same run."""
        self._pid = os.getpid()
        self._dropped_points = self._refused_points = 0
        if self._finished:
            return
        self._identity = replace(
            self._identity,
            writer_id=new_identifier(),
            incarnation=new_identifier(),
            ends_run=False,
            trainer_pid=self._pid,
            created_us=time.time_ns() // 1_000,
        )
        self._open()

    def _wait_until_done(self, deadline: float) -> None:
        if self._sender is None:
            return
        wait_s = 0.005
        while time.monotonic() < deadline:
            status = self.status()
            if status.done or status.stopped:
                return
            self._sender.ensure()
            time.sleep(min(wait_s, max(0.0, deadline - time.monotonic())))
            wait_s = min(wait_s * 1.5, 0.1)

    def _finish_artifacts(self, deadline: float) -> None:
        status = self._artifacts.finish(deadline)
        if status.pending or status.failed or status.dropped:
            line = f"headrace: run {self.id} rank {self.rank}: {status.summary()}"
            if status.pending and self._settings.mode == "online":
                line += "; the uploader goes on in the background"
            if status.pending:
                line += f". To store what remains: headrace sync {self._artifacts.directory}"
            with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be gone
                sys.stderr.write(line + "\n")

    def _report(self, status: RunStatus, spool: SpoolWriter) -> None:
        remains = not status.done
        if self._settings.quiet and not (remains and self._settings.mode == "online"):
            return
        line = f"headrace: run {self.id} rank {self.rank}: {status.summary()}"
        if status.stopped:
            line += f"; the sender stopped: {status.stopped}"
        elif remains and self._settings.mode == "online":
            line += "; the sender goes on in the background"
        if remains:
            line += f". To send what remains: headrace sync {spool.directory}"
        with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be gone
            sys.stderr.write(line + "\n")


_runs: "weakref.WeakSet[Run]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for run in list(_runs):
        run._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
