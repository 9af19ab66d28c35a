"""SHA-256 of ranges of stored objects, read in threads of their own.

What went past the gateway is read back by it, as fast as S3 gives it. In threads
this takes two thirds of the processor time that it takes on the event loop, and
none of the loop's, which serves metrics meanwhile.
"""

import asyncio
import contextlib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from gateway.blobs.clients import BucketSettings, open_blocking_client

_THREADS: Final = 4
_PIECE_BYTES: Final = 1024 * 1024


class Hasher:
    """Reads objects of one bucket. Close it."""

    def __init__(self, settings: BucketSettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3-hasher")
        self._client: Any = None
        self._opening = threading.Lock()

    async def sha256(self, key: str, *, offset: int, length: int) -> bytes:
        """Return the SHA-256 of `length` bytes of an object from `offset`.

        Raises what boto3 raises, and ConnectionResetError for an answer that is too short.
        """
        over = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._read, key, offset, length, over)
        finally:
            over.set()  # a thread cannot be cancelled, only asked

    def close(self) -> None:
        """Let go of the threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    def _read(self, key: str, offset: int, length: int, over: threading.Event) -> bytes:
        digest = hashlib.sha256()
        answer = self._opened().get_object(
            Bucket=self._settings.bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}"
        )
        left = length
        with contextlib.closing(answer["Body"]) as body:
            while left and not over.is_set():
                piece = body.read(min(_PIECE_BYTES, left))
                if not piece:
                    raise ConnectionResetError
                digest.update(piece)
                left -= len(piece)
        return digest.digest()

    def _opened(self) -> Any:
        with self._opening:
            if self._client is None:
                self._client = open_blocking_client(self._settings, connections=_THREADS)
            return self._client
