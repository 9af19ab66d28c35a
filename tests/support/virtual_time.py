"""An event loop whose clock jumps to the next timer when nothing else is to be done.

What paces itself by `loop.time()` and `asyncio.sleep` runs as fast as it computes, and the
same every time. For pure code only: another process does not know of this clock.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _JumpingSelector(selectors.DefaultSelector):
    """Passes the time that it is asked to wait instead of waiting."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # Without any timer only another thread can go on: that is waited for.
        ready = super().select(None if timeout is None else 0)
        if timeout and not ready:
            self.now_s += timeout
        return ready


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s


def in_virtual_time(
    function: Callable[Arguments, Coroutine[Any, Any, Result]],
) -> Callable[Arguments, Result]:
    """Make a coroutine function one that runs to its end on such a loop."""

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with asyncio.Runner(loop_factory=_VirtualTimeLoop) as runner:
            return runner.run(function(*args, **kwargs))

    return run
