"""What the gateway asks of its own process, once, before it serves.

Called by `server`; it changes how memory is kept and looked through, and nothing else.
"""

import contextlib
import ctypes
import gc
from typing import Final

# glibc, malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MMAP_THRESHOLD_BYTES: Final = 32 * 2**20  # the greatest that glibc takes
_TRIM_THRESHOLD_BYTES: Final = 2 * _MMAP_THRESHOLD_BYTES  # glibc's own proportion


def keep_freed_memory() -> None:
    """Have the allocator keep what one flush freed for the next, at most 64 MiB.

    A flush of 262,144 points fills and frees about 30 MB of arrays. Returned to the
    kernel they come back as zeroed pages: a third of the time that encoding took.
    glibc raises its thresholds to these values by itself once a block of 32 MiB was
    freed. Does nothing where the allocator is not glibc's.
    """
    with contextlib.suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        allocator.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def forget_startup_objects() -> None:
    """Leave what exists now, modules and classes mostly, out of every later collection."""
    gc.collect()
    gc.freeze()
