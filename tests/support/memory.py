"""The memory of a process: what it takes now, and the most that it ever took since."""

import asyncio
import re
from pathlib import Path
from typing import Final

import psutil

_PERIOD_S: Final = 0.1
_QUIET_PERIODS: Final = 10
_QUIET_BYTES: Final = 2**20
_SETTLED_DEADLINE_S: Final = 60.0


class Memory:
    """Watches one process from the moment it is made.

    Attributes:
        base: bytes resident at that moment.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._files = Path(f"/proc/{pid}")
        self.base = self.resident()
        if self._files.exists():
            (self._files / "clear_refs").write_text("5")  # forgets the peak: proc_pid_clear_refs(5)

    def resident(self) -> int:
        """Return the bytes resident now."""
        return int(self._process.memory_info().rss)

    def peak(self) -> int:
        """Return the most bytes that were ever resident, for however short a time."""
        if not self._files.exists():  # not Linux: what can be known is the present
            return self.resident()
        status = (self._files / "status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])

    def grown(self) -> int:
        """Return how far the peak is above the base."""
        return self.peak() - self.base

    async def settled(self) -> int:
        """Wait until the process has not grown for a second; return its resident bytes."""
        most, quiet = self.resident(), 0
        async with asyncio.timeout(_SETTLED_DEADLINE_S):
            while quiet < _QUIET_PERIODS:
                await asyncio.sleep(_PERIOD_S)
                now = self.resident()
                quiet = 0 if now > most + _QUIET_BYTES else quiet + 1
                most = max(most, now)
        return most
