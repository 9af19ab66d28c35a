"""Metrics go first: chunks of artifacts take turns, and wait while metrics wait for long.

An event loop that has a chunk of each of sixteen uploads to hash and to send
takes tens of milliseconds to come round, and an acknowledgement needs it to come
round ten times. So one chunk passes in a round. While the oldest batch that is
being flushed is late, none does: what is not read is held back by HTTP/2 at its
client, and with it all that it costs this machine and the S3 server. One chunk
passes every 50 ms whatever happens: beside a database that stays slow uploads
are slow, and never stop.
"""

import asyncio
from collections.abc import Callable
from typing import Final

_LATE_S: Final = 0.02
_WAIT_MAX_S: Final = 0.05
_POLL_S: Final = 0.005


class Precedence:
    """Makes artifacts wait for metrics; one a process."""

    def __init__(self, oldest_batch_s: Callable[[], float]) -> None:
        """Keep where to ask for the age of the oldest batch that is being flushed."""
        self._oldest_batch_s = oldest_batch_s
        self._turn = asyncio.Lock()

    async def give_way(self) -> None:
        """Return when a chunk may be worked on."""
        async with self._turn:
            waited_s = 0.0
            while self._oldest_batch_s() >= _LATE_S and waited_s < _WAIT_MAX_S:
                await asyncio.sleep(_POLL_S)
                waited_s += _POLL_S
            await asyncio.sleep(0)  # the loop comes round before the next
