"""Metrics go first: artifacts move at the rate that leaves acknowledgements in time.

Congestion control for background traffic, in the manner of LEDBAT (RFC 6817): the
signal is the delay that the foreground suffers, beside the least it suffered lately.
While batches of metrics are committed in time the rate of artifacts rises steadily;
when one is late it halves. What is not read is held back by HTTP/2 at its client,
and with it all that it costs this machine and the S3 server. Without metrics, or
with cores to spare, there is no limit to speak of. Transfers never stop.
"""

import asyncio
from collections.abc import Callable
from typing import Final

_MIB: Final = 1024 * 1024
_INTERVAL_S: Final = 0.1
_RATE_MIN: Final = 8.0 * _MIB  # bytes/s
_RATE_MAX: Final = 4096.0 * _MIB
_RISE: Final = 0.5 * _MIB  # an interval beside metrics
_RISE_ALONE: Final = 2.0  # times an interval without
_USUAL_S: Final = 0.005  # until it is known
_FORGET: Final = 1.02  # an interval: a database that became slower is the usual in seconds
_GRACE_S: Final = 0.005


class Precedence:
    """Paces the chunks of all transfers of a process, uploads and downloads together."""

    def __init__(self, longest_wait_s: Callable[[], float]) -> None:
        """Keep where to ask how long batches of metrics waited since that was last asked.

        Args:
            longest_wait_s: seconds from arrival to commit, 0 when there was no batch.
        """
        self._longest_wait_s = longest_wait_s
        self._clock = asyncio.get_running_loop().time
        self._turn = asyncio.Lock()
        self._rate = _RATE_MAX
        self._usual_s = _USUAL_S
        self._next = self._began = self._clock()
        self._bytes = 0
        self._slowest_round_s = 0.0

    async def give_way(self, size: int) -> None:
        """Return when the next `size` bytes may be worked on."""
        async with self._turn:
            due = max(self._next, self._clock())
            await asyncio.sleep(due - self._clock())  # 0 too: one chunk in a round of the loop
            now = self._clock()
            self._slowest_round_s = max(self._slowest_round_s, now - due)
            self._bytes += size
            if now - self._began >= _INTERVAL_S:
                self._adjust(now)
            self._next = max(self._next, now - _INTERVAL_S) + size / self._rate

    def _adjust(self, now: float) -> None:
        wait_s = self._longest_wait_s()
        if wait_s:
            delay_s = max(wait_s, self._slowest_round_s)
            if delay_s < 1.5 * self._usual_s + _GRACE_S:
                self._rate += _RISE
            else:
                self._rate = min(self._rate, self._bytes / (now - self._began)) / 2
            self._usual_s = min(delay_s, self._usual_s * _FORGET)
        else:
            self._rate *= _RISE_ALONE
        self._rate = min(max(self._rate, _RATE_MIN), _RATE_MAX)
        self._began, self._bytes, self._slowest_round_s = now, 0, 0.0
