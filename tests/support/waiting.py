"""Waiting for what must become true: polled, with a deadline, never a bare sleep."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def eventually(
    condition: Callable[[], Found | None], what: str, *, deadline_s: float = 30.0
) -> Found:
    """Return the first true result of a condition.

    Raises:
        AssertionError: there was none in time.
    """
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.01)
    return found


async def eventually_async(
    condition: Callable[[], Found | None], what: str, *, deadline_s: float = 30.0
) -> Found:
    """Return the first true result of a condition, without holding up the event loop."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}"
        await asyncio.sleep(0.01)
    return found
