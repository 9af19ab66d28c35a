"""Becomes another program that ends when this one's parent ends.

Run as a script (`python -I -S launch.py PARENT SIGNAL UID GID CAPABILITY PROGRAM …`)
by `gateway.embedded.processes`, never imported. It drops to UID:GID (unless UID is -1),
asks the kernel for SIGNAL when the process PARENT ends, and executes PROGRAM.
Between fork and exec of the gateway itself none of this could be done safely:
other threads may hold locks there.

CAPABILITY is -1 or a Linux capability number to keep across the change of
user: PostgreSQL refuses to be root, yet must enter directories that only root
may enter when the gateway or its data live below them (a clone in /root).
"""

import contextlib
import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3 = 0x20080522


def _survive_setuid(libc: ctypes.CDLL) -> None:
    # Else setuid clears every capability, and access(2), by which initdb looks for its
    # programs, goes by the user alone (capabilities(7), SECBIT_NO_SETUID_FIXUP).
    if libc.prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "capabilities cannot be kept across setuid")


def _keep(libc: ctypes.CDLL, capability: int) -> None:
    mask = 1 << capability
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    if libc.capset(header, data) or libc.prctl(
        _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0
    ):
        raise OSError(ctypes.get_errno(), f"capability {capability} cannot be kept")


def main() -> None:
    parent, signal_number, uid, gid, capability = (int(text) for text in sys.argv[1:6])
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if uid >= 0:
        if libc is not None and capability >= 0:
            _survive_setuid(libc)
        os.setgroups([gid])
        os.setgid(gid)
        os.setuid(uid)
        if libc is not None and capability >= 0:
            _keep(libc, capability)
    if libc is not None:
        # After setuid, which clears it.
        libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(1)
    with contextlib.suppress(OSError):
        os.setsid()  # a terminal's Ctrl-C reaches the gateway, which stops its children in order
    os.execv(sys.argv[6], sys.argv[6:])


main()
