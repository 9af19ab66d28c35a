"""Whom PostgreSQL runs as: the caller, unless that is root, which it refuses to be."""

import contextlib
import os
import pwd
import stat
from pathlib import Path
from typing import Final

from gateway.embedded.processes import OWN_ACCOUNT, Account, EmbeddedError

_CAP_DAC_OVERRIDE: Final = 1
_CAP_DAC_READ_SEARCH: Final = 2
_CAP_SETPCAP: Final = 8
# Accounts to run PostgreSQL as when the gateway is root, the first that exists.
_ACCOUNTS: Final = ("headrace", "postgres", "nobody")


def postgres_account(data: Path, binaries: Path) -> Account:
    """Choose whom PostgreSQL runs as: ourselves, unless we are root, which it refuses."""
    if os.geteuid() != 0:
        return OWN_ACCOUNT
    if data.exists() and data.stat().st_uid != 0:
        found = data.stat()
        uid, gid = found.st_uid, found.st_gid
    else:
        for name in _ACCOUNTS:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                uid, gid = entry.pw_uid, entry.pw_gid
                break
        else:
            raise EmbeddedError(
                "PostgreSQL refuses to run as root and none of the accounts "
                f"{', '.join(_ACCOUNTS)} exists: add one"
            )
    shut = _shut(uid, gid, data.parent) or _shut(uid, gid, binaries)
    if shut is None:
        return Account(uid=uid, gid=gid)
    capability = _entering_capability()
    if capability is None:
        raise EmbeddedError(
            f"PostgreSQL runs as user {uid}, who may not enter {shut}: chmod o+x it, "
            "or put the data and the installation elsewhere"
        )
    return Account(uid=uid, gid=gid, capability=capability)


def _shut(uid: int, gid: int, directory: Path) -> Path | None:
    """Return the outermost directory on the way that the account may not enter, or None."""
    directory = directory.resolve()
    for entered in reversed((directory, *directory.parents)):
        if not entered.exists():
            break
        found = entered.stat()
        execute = (
            stat.S_IXUSR
            if found.st_uid == uid
            else stat.S_IXGRP
            if found.st_gid == gid
            else stat.S_IXOTH
        )
        if not found.st_mode & execute:
            return entered
    return None


def _entering_capability() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
                if not effective & (1 << _CAP_SETPCAP):  # what handing one on takes
                    return None
                # Read and search suffices; containers often withhold it but grant the wider one.
                for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
                    if effective & (1 << capability):
                        return capability
    return None
