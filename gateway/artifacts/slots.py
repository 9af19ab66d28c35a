"""How many transfers run at once: in the whole process, and of one upload.

Whoever waits is not read, so HTTP/2 holds its client back; first come, first
served. This bounds the gateway's memory: a transfer under way holds a few
chunks, a waiting one only what HTTP/2 has buffered of it. `Admission` bounds
how many there are of both together.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterator
from typing import Final

from prometheus_client import Gauge

from gateway.domain.errors import HeadraceError, Reason

_RETRY_AFTER_MS: Final = 1_000


class Admission:
    """Refuses transfers beyond the most that may be open at once, moving or waiting."""

    def __init__(self, open_max: int) -> None:
        self._open_max = open_max
        self._open = 0

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Be one of them.

        Raises:
            HeadraceError: OVERLOADED.
        """
        if self._open >= self._open_max:
            raise HeadraceError(
                Reason.OVERLOADED,
                f"the gateway has {self._open_max} open transfers, its maximum",
                field="artifact_parts_in_flight_max",
                limit=self._open_max,
                retry_after_ms=_RETRY_AFTER_MS,
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class Slots:
    """Lends slots; see the module."""

    def __init__(self, total_max: int, *, owner_max: int, active: Gauge, waiting: Gauge) -> None:
        """Make `total_max` slots, of which one owner has at most `owner_max`."""
        self._total = asyncio.Semaphore(total_max)
        self._owner_max = owner_max
        self._owners: dict[Hashable, asyncio.Semaphore] = {}
        self._users: Counter[Hashable] = Counter()
        self._active = active
        self._waiting = waiting

    @contextlib.asynccontextmanager
    async def take(self, owner: Hashable) -> AsyncIterator[None]:
        """Hold a slot, when there is one."""
        mine = self._owners.setdefault(owner, asyncio.Semaphore(self._owner_max))
        self._users[owner] += 1
        try:
            with self._waiting.track_inprogress():
                await mine.acquire()
                try:
                    await self._total.acquire()
                except BaseException:
                    mine.release()
                    raise
            try:
                with self._active.track_inprogress():
                    yield
            finally:
                self._total.release()
                mine.release()
        finally:
            self._users[owner] -= 1
            if not self._users[owner]:
                del self._users[owner], self._owners[owner]


class Turns:
    """Lets one caller at a time do what has the same key."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self._users: Counter[Hashable] = Counter()

    @contextlib.asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[bool]:
        """Hold the turn; yields whether somebody else had it before."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        waited = self._users[key] > 0
        self._users[key] += 1
        try:
            async with lock:
                yield waited
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]
