"""Waiting for what must become true: polled, with a deadline, never a bare sleep."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

Found = TypeVar("Found")

_PERIOD_S = 0.01


def eventually(
    condition: Callable[[], Found | None], what: str = "", *, deadline_s: float = 60.0
) -> Found:
    """Return the first true result of a condition.

    Raises:
        AssertionError: there was none in time.
    """
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, _never(condition, what, deadline_s)
        time.sleep(_PERIOD_S)
    return found


async def eventually_async(
    condition: Callable[[], Any], what: str = "", *, deadline_s: float = 60.0
) -> Any:
    """The same for a condition that may be awaited, without holding up the event loop."""
    end = time.monotonic() + deadline_s
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < end, _never(condition, what, deadline_s)
        await asyncio.sleep(_PERIOD_S)


def _never(condition: Callable[[], object], what: str, deadline_s: float) -> str:
    return f"not within {deadline_s:.0f} s: {what or inspect.getsource(condition).strip()}"
