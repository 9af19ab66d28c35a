"""Starts, wakes and watches the sender of a spool, from the trainer's side. Never waits for it.

The sender is a new program (no fork of the trainer's memory, no gRPC beside
DataLoader workers) in a session of its own, so that Ctrl-C does not reach it
and it can outlive the trainer.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from headrace import spool_files
from headrace.settings import Settings

EXIT_STOPPED: Final = 3
"""Exit status of a sender that must not be started again: the gateway refused for good."""

RESTART_WAIT_S: Final = 1.0
RESTART_WAIT_MAX_S: Final = 60.0
"""Between two starts of a sender that dies; doubled each time."""

LIVED_S: Final = 60.0
"""A sender that dies after so long did its work; its death is the first in a row."""

_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)
"""A trainer that restored SIGPIPE must not die of its sender's death."""


class SenderProcess:
    """The sender of one spool.

    Attributes:
        log: the file of what senders had to say.
        deaths: how many senders in a row died young, whose successor was started.
    """

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.log = directory / spool_files.SENDER_LOG
        self._directory = directory
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._wake: socket.socket | None = None
        self._restart_wait_s = RESTART_WAIT_S
        self._restart_at = 0.0
        self._started_at = 0.0
        self.deaths = 0

    def start(self) -> None:
        """Starts the program.

        Raises:
            OSError: it cannot be started; `ensure` tries again later.
        """
        self._close_wake()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs, self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "headrace.sender", os.fspath(self._directory)],
                    stdin=theirs.fileno(),
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env={
                        "GRPC_VERBOSITY": "ERROR",
                        **os.environ,
                        **self._settings.environment(),
                    },
                    start_new_session=True,
                )
        except OSError:
            ours.close()
            raise
        self._wake = ours
        self._started_at = time.monotonic()

    def wake(self) -> None:
        """Tells an idle sender that there is something; costs one system call."""
        if self._wake is not None:
            with contextlib.suppress(OSError):  # full: it will wake anyway; closed: it died
                self._wake.send(b"\0", _NO_SIGNAL)

    def ensure(self) -> bool:
        """Starts the sender again if it died, but not more often than the waits allow.

        False when it gave up for good.
        """
        process = self._process
        if process is not None and process.poll() is None:
            return True
        if process is not None and process.returncode == EXIT_STOPPED:
            return False
        now = time.monotonic()
        if now < self._restart_at:
            return True
        if process is not None and process.returncode != 0:
            if now - self._started_at > LIVED_S:
                self.deaths, self._restart_wait_s = 0, RESTART_WAIT_S
            self.deaths += 1
        self._restart_at = now + self._restart_wait_s
        self._restart_wait_s = min(2 * self._restart_wait_s, RESTART_WAIT_MAX_S)
        with contextlib.suppress(OSError):
            self.start()
        return True

    @property
    def pid(self) -> int | None:
        """The process id, while it is known to run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def release(self, *, wait_s: float = 0.0) -> None:
        """Lets go of the sender, which goes on by itself; reaps it if it ends in time."""
        self._close_wake()
        process = self._process
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        if process.returncode is None:
            process.returncode = 0  # it outlives us on purpose: no ResourceWarning
        self._process = None

    def forget(self) -> None:
        """Closes what a forked child inherited; the sender is its parent's."""
        self._close_wake()
        if self._process is not None:
            self._process.returncode = 0
            self._process = None

    def _close_wake(self) -> None:
        if self._wake is not None:
            self._wake.close()
            self._wake = None
