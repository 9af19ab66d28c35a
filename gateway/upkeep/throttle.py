"""Work at a bounded share of the time: slow when the database is."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

_Result = TypeVar("_Result")


class Total(Protocol):
    """Adds up seconds."""

    def inc(self, amount: float) -> None:
        """Add."""


class Throttle:
    """Rests after each piece of work in proportion to what it took."""

    def __init__(
        self,
        *,
        time_share_max: float,
        seconds: Total,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Prepare.

        Args:
            time_share_max: of its time, the most that it works; above 0, at most 1.
            seconds: counts what the work took.
            rest: waits for so many seconds.
        """
        self._rest_factor = 1.0 / time_share_max - 1.0
        self._seconds = seconds
        self._rest = rest

    async def __call__(self, work: Awaitable[_Result]) -> _Result:
        """Do the work, rest, and return its result."""
        began = time.monotonic()
        result = await work
        took_s = time.monotonic() - began
        self._seconds.inc(took_s)
        await self._rest(took_s * self._rest_factor)
        return result
