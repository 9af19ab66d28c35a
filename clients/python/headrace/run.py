"""A run as the training process sees it: everything goes into the spool, nothing is waited for.

`Run` joins what one process may say: metrics and metadata (recorder.py), and
artifacts (artifact_logging.py).
"""

import contextlib
import os
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, SupportsIndex

from headrace.artifact_logging import ArtifactLog
from headrace.console import CONSOLE_FILE, ConsoleCapture
from headrace.errors import HeadraceError
from headrace.recorder import Recorder
from headrace.run_artifacts import ArtifactMethods
from headrace.run_metadata import Config, MetadataMethods, Summary
from headrace.settings import Settings
from headrace.spool_files import WriterIdentity
from headrace.status import STATES, RunStatus


class Run(ArtifactMethods, MetadataMethods):
    """One process's part of a run. Made by `headrace.init`.

    Attributes:
        id: the run's id, 32 lower-case hex digits.
        rank, world_size, attempt: this process within its job.
        config: the params that this process set; setting one records it.
        summary: the results that this process set; likewise.
        spool: the directory of this process's spool; None when there is none.
    """

    def __init__(self, identity: WriterIdentity, settings: Settings, *, world_size: int) -> None:
        self.id = identity.run_id
        self.rank = identity.rank
        self.world_size = world_size
        self.attempt = identity.attempt
        self._settings = settings
        self._recorder = Recorder(identity, settings)
        self._artifacts = ArtifactLog(identity.run_id, settings)
        self.config = Config(self._recorder)
        self.summary = Summary(self._recorder)
        self._console: ConsoleCapture | None = None
        directory = self._recorder.directory
        if settings.console and directory is not None:
            self._console = ConsoleCapture(directory / CONSOLE_FILE)
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
        self._recorder.log(metrics, step)

    def resume_point(self, step: int) -> dict[str, Any]:
        """What to keep in a checkpoint, so that `init(resume=…)` continues this run. JSON's types.

        Args:
            step: the first step that a restarted job computes anew.
        """
        identity = self._recorder.identity
        return {
            "run_id": self.id,
            "experiment": identity.experiment,
            "step_policy": identity.step_policy,
            "late_policy": identity.late_policy,
            "attempt": self.attempt,
            "resume_step": step,
        }

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
        if self._console is not None:
            self._console.stop()
            self._console = None
        if not self._recorder.end(STATES[state]):
            return self.status()
        limit_s = self._settings.finish_timeout_s if timeout is None else max(0.0, timeout)
        deadline = time.monotonic() + limit_s
        spool = self.spool
        try:
            self._recorder.wait_until_done(deadline)
        finally:
            self._finish_artifacts(deadline)
            status = self._recorder.close()
            self._report(status, spool)
        return status

    def status(self) -> RunStatus:
        """How far this process's records have come. Asks no server: reads the sender's note."""
        return self._recorder.status()

    @property
    def spool(self) -> os.PathLike[str] | None:
        """The directory of this process's spool."""
        return self._recorder.directory

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

    def _queue_artifact(self, queue: Callable[[], str]) -> None:
        if self._settings.mode == "disabled":
            return
        self._recorder.become_writer()
        try:  # outside the recorder's lock: what takes long here holds up no log call
            fault = "the run is finished" if self._recorder.finished else queue()
        except HeadraceError as error:
            fault = str(error)
        except Exception as error:  # of a figure or a table: training goes on
            fault = f"{type(error).__name__}: {error}"
        if fault:
            if self._settings.strict:
                raise HeadraceError(f"the artifact is not logged: {fault}")
            self._recorder.warn("artifact", f"an artifact is not logged: {fault}")

    def _finish_artifacts(self, deadline: float) -> None:
        status = self._artifacts.finish(deadline)
        if status.pending or status.failed or status.dropped:
            line = f"headrace: run {self.id} rank {self.rank}: {status.summary()}"
            if status.pending and self._settings.mode == "online":
                line += "; the uploader goes on in the background"
            if status.pending:
                line += f". To store what remains: headrace sync {self._artifacts.directory}"
            _tell_user(line)

    def _report(self, status: RunStatus, spool: os.PathLike[str] | None) -> None:
        self._recorder.report_rejections(status)
        remains = not status.done
        if self._settings.quiet and not (remains and self._settings.mode == "online"):
            return
        line = f"headrace: run {self.id} rank {self.rank}: {status.summary()}"
        if status.stopped:
            line += f"; the sender stopped: {status.stopped}"
        elif remains and self._settings.mode == "online":
            line += "; the sender goes on in the background"
        if remains:
            line += f". To send what remains: headrace sync {spool}"
        _tell_user(line)

    def _after_fork_in_child(self) -> None:
        self._console = None  # the parent's; what the child writes goes on into the same file
        self._recorder.after_fork_in_child()
        self._artifacts.forget()


def _tell_user(line: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be gone
        sys.stderr.write(line + "\n")


_runs: "weakref.WeakSet[Run]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for run in list(_runs):
        run._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
