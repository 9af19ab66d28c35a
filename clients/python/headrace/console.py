"""Keeps a copy of what the trainer writes to standard output and error. Off unless asked for.

The copy is a file in the spool, at most CONSOLE_BYTES_MAX long; the sender
stores it as an artifact when the trainer has ended, in whatever way. Only what
goes through `sys.stdout` and `sys.stderr` is seen, tracebacks included; what C
libraries or child programs write is not. A failure to keep the copy ends the
copy and nothing else.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Final

CONSOLE_FILE: Final = "console.log"
CONSOLE_BYTES_MAX: Final = 16 * 1024 * 1024


class ConsoleCapture:
    """A copy of one process's output; see the module."""

    def __init__(self, path: Path, *, bytes_max: int = CONSOLE_BYTES_MAX) -> None:
        """Begin. Raises nothing: without a file there is no copy."""
        self._left = bytes_max
        self._skipped = 0
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o600)
        self._tees: dict[str, _Tee] = {}
        for name in ("stdout", "stderr"):
            original = getattr(sys, name)
            if original is not None:
                self._tees[name] = _Tee(original, self)
                setattr(sys, name, self._tees[name])

    def keep(self, text: str) -> None:
        """Add to the copy what was written."""
        descriptor = self._descriptor
        if descriptor is None:
            return
        data = text.encode(errors="replace")
        if len(data) > self._left:
            self._skipped += len(data) - self._left
            data = data[: self._left]
        if not data:
            return
        try:
            self._left -= os.write(descriptor, data)
        except OSError:  # a full disk: the copy ends here
            self._left = 0

    def stop(self) -> None:
        """Give the streams back, unless somebody replaced them meanwhile; end the copy."""
        for name, tee in self._tees.items():
            if getattr(sys, name) is tee:
                setattr(sys, name, tee.original)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with contextlib.suppress(OSError):
            if self._skipped:
                os.write(descriptor, f"\n[{self._skipped:,} more bytes were not kept]\n".encode())
        os.close(descriptor)


class _Tee:
    """A text stream that also keeps what is written; everything else is the original's."""

    def __init__(self, original: Any, capture: ConsoleCapture) -> None:
        self.original = original
        self._capture = capture

    def write(self, text: str) -> Any:
        """Write to the original, then to the copy."""
        written = self.original.write(text)
        self._capture.keep(text)
        return written

    def writelines(self, lines: Any) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __iter__(self) -> Any:
        return iter(self.original)
