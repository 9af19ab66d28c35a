"""Downloads: ranges of artifacts, read from S3 as fast as the caller takes them.

A failed read is resumed where it stopped, a few times; a caller that takes
nothing for a while loses its S3 connection but not its place: the range is
opened again when it goes on. Of an object that is gone by then, the manifest says why.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final
from uuid import UUID

from gateway.artifacts.slots import Slots
from gateway.artifacts.uploads import check_direct
from gateway.blobs.bucket import Bucket
from gateway.blobs.errors import BlobMissingError
from gateway.domain.errors import HeadraceError, Reason
from gateway.store.artifacts import ArtifactStore, StoredArtifact
from gateway.telemetry import METRICS

_TRIES: Final = 4
_RETRY_DELAY_S: Final = 0.25


class Downloads:
    """Reads content back out of the bucket."""

    def __init__(
        self,
        store: ArtifactStore,
        bucket: Bucket,
        *,
        slots: Slots,
        direct: bool,
        signed_expiry_s: int,
        stall_timeout_s: float,
    ) -> None:
        """Keep the parts; `stall_timeout_s` is how long a caller may take nothing."""
        self._store = store
        self._bucket = bucket
        self._slots = slots
        self._direct = direct
        self._signed_expiry_s = signed_expiry_s
        self._stall_timeout_s = stall_timeout_s

    async def find(
        self, workspace_id: int, run_id: UUID, path: str, *, digest: bytes = b""
    ) -> StoredArtifact:
        """Return an artifact, part digests included.

        Raises:
            HeadraceError: ARTIFACT_NOT_FOUND; ARTIFACT_CHANGED when `digest` is
                given and the path holds other content.
        """
        found = await self._store.get(workspace_id, run_id, path)
        if digest and found.artifact.digest != digest:
            raise HeadraceError(
                Reason.ARTIFACT_CHANGED,
                f"{path!r} was replaced: it no longer has the digest asked for",
                field="digest",
                value=digest.hex(),
            )
        return found

    async def send(
        self,
        workspace_id: int,
        found: StoredArtifact,
        *,
        offset: int,
        length: int,
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Pass exactly `length` bytes from `offset` to `write`, in chunks.

        Raises:
            HeadraceError: S3 failed and went on failing; ARTIFACT_NOT_FOUND or
                ARTIFACT_CHANGED when the artifact was deleted or replaced meanwhile.
        """
        position, end = offset, offset + length
        failures = 0
        while position < end:
            start, stuck = position, None
            try:
                async with (
                    self._slots.take(found.object_key),
                    aclosing(
                        self._bucket.read(found.object_key, offset=start, length=end - start)
                    ) as chunks,
                ):
                    async for chunk in chunks:
                        writing = asyncio.ensure_future(write(chunk))
                        try:
                            done, _ = await asyncio.wait({writing}, timeout=self._stall_timeout_s)
                        except asyncio.CancelledError:  # the caller is gone
                            writing.cancel()
                            raise
                        position += len(chunk)
                        if not done:
                            stuck = writing
                            break
                        writing.result()
            except BlobMissingError:
                await self._check_current(workspace_id, found)
                raise
            except HeadraceError as error:
                failures = 1 if position > start else failures + 1
                if error.reason is not Reason.BLOB_STORE_UNAVAILABLE or failures >= _TRIES:
                    raise
                await asyncio.sleep(_RETRY_DELAY_S * 2**failures)
            finally:
                METRICS.artifact_bytes_sent.inc(position - start)
            if stuck is not None:
                await stuck  # without a slot and a connection: for as long as it takes

    async def _check_current(self, workspace_id: int, found: StoredArtifact) -> None:
        """Raise what became of an artifact; return if it still has the same object."""
        artifact = found.artifact
        now = await self._store.get(workspace_id, artifact.run_id, artifact.path)
        if now.object_key != found.object_key:
            raise HeadraceError(
                Reason.ARTIFACT_CHANGED,
                f"{artifact.path!r} was replaced while it was read: download it again",
                field="path",
                value=artifact.path,
            )

    async def sign(self, found: StoredArtifact) -> str:
        """Return a URL that reads the artifact's content.

        Raises:
            HeadraceError: DIRECT_UNAVAILABLE.
        """
        check_direct(self._direct)
        return await self._bucket.sign_get(found.object_key, expires_s=self._signed_expiry_s)
