"""Moves files to and from a gateway: in parts, in parallel, verified, resumed after anything.

Used by `Artifacts`, the uploader process and the command line; blocks, and is
thread-safe. What is interrupted goes on where it stopped, in another process
too: the gateway knows which parts it has, and a half-made download lies beside
its target until it is whole. A file appears under its name, at either end,
only when every byte of it was verified.
"""

from typing import Self

from headrace.transfer_calls import Direct, Progress
from headrace.transfer_downloads import Downloads
from headrace.transfer_uploads import Uploads

__all__ = ["Direct", "Progress", "Transfers"]


class Transfers(Uploads, Downloads):
    """Uploads and downloads through one channel. Close it, or use it as a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
