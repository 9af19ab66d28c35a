"""A request body that is forwarded while it arrives, and verified before it is whole."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

from gateway.domain.errors import HeadraceError, Reason


class Body:
    """What aiohttp sends: chunks from an async iterator, each verified before it leaves.

    The last chunk is held back until size and digest are right, so that S3
    never completes a request whose bytes are wrong. botocore takes anything
    with a `read`; nobody calls it.
    """

    def __init__(self, chunks: AsyncIterator[bytes], *, size: int, sha256: bytes) -> None:
        self._chunks = chunks
        self._size = size
        self._sha256 = sha256
        self._timeout: asyncio.Timeout | None = None
        self._stall_timeout_s = 0.0
        self.failure: Exception | None = None

    def watch(self, timeout: asyncio.Timeout, stall_timeout_s: float) -> None:
        """Let S3's progress move this time limit; our source has its own."""
        self._timeout, self._stall_timeout_s = timeout, stall_timeout_s

    def read(self, _size: int = -1) -> bytes:
        """Satisfy botocore's check of its parameters."""
        raise TypeError("the body is streamed")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._verified():
                self._expect(self._stall_timeout_s)  # from S3, which must take it
                yield chunk
        except Exception as error:
            # aiohttp replaces what a body raises; the caller gets the original, be it
            # ours or its own (a message that cannot be parsed).
            self.failure = error
            raise

    async def _verified(self) -> AsyncIterator[bytes]:
        received = 0
        digest = hashlib.sha256()
        self._expect(None)
        async for chunk in self._chunks:
            received += len(chunk)
            if received > self._size:
                break
            digest.update(chunk)
            if received == self._size and digest.digest() != self._sha256:
                raise HeadraceError(
                    Reason.DIGEST_MISMATCH,
                    "the bytes do not have the announced SHA-256: damaged on the way, or the"
                    " file was changed after it was hashed",
                    field="chunk",
                )
            yield chunk
            self._expect(None)
        if received != self._size:
            raise HeadraceError(
                Reason.DIGEST_MISMATCH,
                f"{'more than' if received > self._size else f'only {received} of'}"
                f" {self._size} bytes arrived",
                field="chunk",
                value=received,
                limit=self._size,
            )

    def _expect(self, within_s: float | None) -> None:
        if self._timeout is not None:
            deadline = None if within_s is None else asyncio.get_running_loop().time() + within_s
            self._timeout.reschedule(deadline)
