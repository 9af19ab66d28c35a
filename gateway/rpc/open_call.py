"""The call that a task serves: how something else than its handler ends it.

A handler that waits in `context.write` for a reader that reads nothing cannot
raise. Whoever knows that the call is over says so to its `OpenCall`; the
interceptor makes one for each call, and reports the failure as if the handler
had raised it.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

_current: ContextVar["OpenCall | None"] = ContextVar("open_call", default=None)


class OpenCall:
    """One call, to be made in the task that serves it.

    Attributes:
        failure: what it ends with, once `fail` was called.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - within a coroutine there is one
        self.failure: Exception | None = None
        self._task = task
        self._at_end: list[Callable[[], None]] = []
        _current.set(self)

    def fail(self, error: Exception) -> None:
        """End the call with an error, wherever its task waits; the first one counts."""
        if self.failure is None:
            self.failure = error
            self._task.cancel()

    def failed(self) -> Exception | None:
        """Return the failure, and take its cancellation of the task back."""
        if self.failure is not None:
            self._task.uncancel()
        return self.failure

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call back when gRPC has let go of the call, its messages included."""
        self._at_end.append(callback)

    def close(self) -> None:
        """Call back those who wait for the end; idempotent."""
        while self._at_end:
            self._at_end.pop()()


def current_call() -> OpenCall | None:
    """Return the call that this task serves, or None outside of one."""
    return _current.get()
