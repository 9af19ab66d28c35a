"""Ends what a killed gateway or postmaster left behind, before a new server starts."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.embedded.processes import POLL_S, STOP_DEADLINE_S, EmbeddedError


def end_leftovers(data: Path) -> None:
    """End whatever server processes still use a data directory; wait until they have.

    After a SIGKILL of the gateway its PostgreSQL is shutting down; after one
    of the postmaster its sessions notice only when they next wait. A new
    server refuses to start beside either.
    """
    deadline = time.monotonic() + STOP_DEADLINE_S
    urgency = signal.SIGINT
    while pids := list(_processes_in(data)):
        if time.monotonic() > deadline - STOP_DEADLINE_S / 2:
            urgency = signal.SIGKILL
        if time.monotonic() > deadline:
            raise EmbeddedError(f"processes {pids} of an earlier server in {data} do not end")
        postmaster = _postmaster_pid(data)
        for pid in pids:
            # An orphaned session is already lost; only a living postmaster is asked politely.
            number = urgency if postmaster in pids else signal.SIGKILL
            if pid == postmaster or number is signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(POLL_S)


def _postmaster_pid(data: Path) -> int:
    try:
        return int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return -1


def _processes_in(data: Path) -> Iterator[int]:
    """Yield the PostgreSQL processes whose working directory is `data` (PostgreSQL's habit)."""
    proc = Path("/proc")
    if not proc.is_dir():  # not Linux: the postmaster itself is all that can be found
        pid = _postmaster_pid(data)
        with contextlib.suppress(OSError):
            if pid > 0:
                os.kill(pid, 0)
                yield pid
        return
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink() == data and _is_alive(entry):
                    yield int(entry.name)


def _is_alive(entry: Path) -> bool:
    fields = (entry / "stat").read_text().rpartition(")")
    return fields[0].endswith("(postgres") and fields[2].split()[0] != "Z"
