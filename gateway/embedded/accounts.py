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
    if _may_enter(uid, gid, data.parent) and _may_enter(uid, gid, binaries / "postgres"):
        return Account(uid=uid, gid=gid)
    return Account(uid=uid, gid=gid, capability=_entering_capability())


def _may_enter(uid: int, gid: int, path: Path) -> bool:
    for directory in path.resolve().parents if path.is_file() else (path, *path.parents):
        if not directory.exists():
            continue
        found = directory.stat()
        execute = (
            stat.S_IXUSR
            if found.st_uid == uid
            else stat.S_IXGRP
            if found.st_gid == gid
            else stat.S_IXOTH
        )
        if not found.st_mode & execute:
            return False
    return True


def _entering_capability() -> int:
    # Read and search suffices; containers often withhold it but grant the wider one.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
                for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
                    if effective & (1 << capability):
                        return capability
    return -1
