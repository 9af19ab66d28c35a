"""Child processes of the embedded stores: started so that they end with the gateway."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
START_DEADLINE_S: Final = 60.0  # crash recovery of a large WAL included
STOP_DEADLINE_S: Final = 20.0
POLL_S: Final = 0.01
_LAUNCHER: Final = Path(__file__).with_name("launch.py")
_LOG_BYTES_MAX: Final = 16 * 2**20


class EmbeddedError(Exception):
    """An embedded server cannot run; the message says why and what to do."""


class DirectoryInUseError(EmbeddedError):
    """Another gateway uses the directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The system account that a child runs as; -1 is the caller's own.

    Attributes:
        uid: user id.
        gid: group id.
        capability: a Linux capability that the child keeps, or -1.
    """

    uid: int = -1
    gid: int = -1
    capability: int = -1


OWN_ACCOUNT: Final = Account()


def environment_of_child(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: ours without what would redirect it."""
    # PG* variables of the user's shell would redirect initdb and postgres.
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "RCLONE_"))
    }
    return {**kept, "LC_ALL": "C", **(extra or {})}


def command_of_child(
    command: list[str | Path], ends_with_parent: signal.Signals, *, account: Account = OWN_ACCOUNT
) -> list[str]:
    """Return the command that becomes `command` under `account`, ended when we end."""
    terms = (os.getpid(), int(ends_with_parent), account.uid, account.gid, account.capability)
    return [sys.executable, "-I", "-S", str(_LAUNCHER), *map(str, terms), *map(str, command)]


def launch(
    command: list[str | Path],
    *,
    log: Path,
    ends_with_parent: signal.Signals,
    account: Account = OWN_ACCOUNT,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child; what it prints is appended to `log`, which is bounded at each start."""
    if log.exists() and log.stat().st_size > _LOG_BYTES_MAX:
        log.rename(log.with_name(log.name + ".1"))
    with log.open("ab") as output:
        return subprocess.Popen(
            command_of_child(command, ends_with_parent, account=account),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment_of_child(environment),
        )


def end(process: subprocess.Popen[bytes], signals: tuple[signal.Signals, ...]) -> None:
    """End a child, with the next signal when the one before did not do it in time."""
    for number in signals:
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_DEADLINE_S)


def tail(log: Path) -> str:
    """Return the last lines of a log, for an error's message."""
    try:
        return log.read_text(errors="replace")[-2000:].strip()
    except OSError:
        return "(no log)"
