"""How many admitted bytes may wait for their commit, in all and per stream.

A stream that is over budget stops reading; HTTP/2 pushes back on its client.
The total may be exceeded by one message of each stream whose read was under way.
"""

import asyncio
from collections import deque

from gateway.ingest.session import Session


class PendingBytes:
    """The byte budgets of one gateway process.

    Attributes:
        total: bytes admitted and not committed.
        total_max, stream_max: the budgets, in bytes.
        waiting: streams that wait for room.
    """

    __slots__ = ("_waiters", "stream_max", "total", "total_max")

    def __init__(self, *, total_max: int, stream_max: int) -> None:
        self.total = 0
        self.total_max = total_max
        self.stream_max = stream_max
        self._waiters: deque[tuple[Session, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Streams that wait for room."""
        return len(self._waiters)

    def admit(self, size_bytes: int) -> None:
        """Count bytes in."""
        self.total += size_bytes

    def release(self, size_bytes: int) -> None:
        """Count bytes out and wake the streams that have room now, first come, first served."""
        self.total -= size_bytes
        woken = self.total
        still: deque[tuple[Session, asyncio.Future[None]]] = deque()
        while self._waiters and woken < self.total_max:
            session, waiter = self._waiters.popleft()
            if waiter.done():
                continue
            if session.pending_bytes >= self.stream_max and session.ending is None:
                still.append((session, waiter))
                continue
            waiter.set_result(None)
            woken += self.stream_max // 16  # what one stream is likely to add before it looks again
        self._waiters.extendleft(reversed(still))

    async def room(self, session: Session) -> None:
        """Return when `session` may read its next message, or has ended."""
        while (
            self.total >= self.total_max or session.pending_bytes >= self.stream_max
        ) and session.ending is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((session, waiter))
            await waiter

    def wake(self, session: Session) -> None:
        """Wake a session that ended."""
        for waiting, waiter in self._waiters:
            if waiting is session and not waiter.done():
                waiter.set_result(None)
