"""Cleaning up: deletions, abandoned uploads, and objects that nobody knows.

`Cleanup.run` goes on beside the service: it deletes what the manifest has let
go of, and ends uploads without progress, so that no orphan part is paid for.
`reconcile` compares the bucket with the manifest, for an operator: it finds
objects and multipart uploads without a row (which a healthy gateway never
leaves) and content whose object is missing. It asks S3 first and the manifest
second: a row precedes its bytes and keys are never reused, so an object whose
key has no row when the manifest is asked can never become visible.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from gateway.blobs.bucket import Bucket, StoredObject
from gateway.domain.errors import HeadraceError, Reason
from gateway.store.artifact_leftovers import ArtifactLeftovers
from gateway.store.artifacts import ArtifactStore
from gateway.telemetry import METRICS

_LOG = structlog.get_logger(__name__)

_PERIOD_S: Final = 60.0
_PAGE: Final = 500
_LIST_MAX: Final = 1_000  # of the keys that a report names; the counts are complete
_REFUSED_NAMED_MAX: Final = 10  # of the keys that one line of the log names


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `reconcile` found. At most 1,000 keys of each kind are named.

    Attributes:
        orphan_objects: keys of objects without a row, and how many.
        orphan_uploads: keys of multipart uploads without a row, and how many.
        missing_objects: keys of content whose object is gone, and how many.
        removed: whether the orphans were removed.
    """

    orphan_objects: tuple[str, ...]
    orphan_object_count: int
    orphan_uploads: tuple[str, ...]
    orphan_upload_count: int
    missing_objects: tuple[str, ...]
    missing_object_count: int
    removed: bool


class Cleanup:
    """Deletes what the manifest no longer needs."""

    def __init__(
        self,
        store: ArtifactStore,
        leftovers: ArtifactLeftovers,
        bucket: Bucket,
        *,
        namespace: str,
        upload_expiry_s: float,
    ) -> None:
        """Keep the parts; uploads without progress for `upload_expiry_s` are ended."""
        self._store = store
        self._leftovers = leftovers
        self._bucket = bucket
        self._prefix = f"{bucket.key_prefix}{namespace}/"
        self._upload_expiry_s = upload_expiry_s
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Say that there is something to delete."""
        self._wake.set()

    async def run(self) -> None:
        """Clean up now, every minute, and when woken, until cancelled. Failures are logged."""
        while True:
            try:
                await self.sweep()
            except HeadraceError as error:
                _LOG.warning("cleaning up failed; it is tried again", error=error.message)
            try:
                async with asyncio.timeout(_PERIOD_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def sweep(self) -> int:
        """End expired uploads, delete what is due; return how many objects were deleted.

        Raises:
            HeadraceError: the store's or the bucket's. What S3 refuses to delete does
                not keep the rest from being deleted.
        """
        while expired := await self._leftovers.list_expired_uploads(
            older_than_s=self._upload_expiry_s, count_max=_PAGE
        ):
            for upload in expired:
                if await self._store.discard_upload(upload.run_id, upload.upload_id):
                    METRICS.artifact_uploads_expired.inc()
                    _LOG.info("upload expired", run=upload.run_id.hex, path=upload.path)
        deleted, after = 0, ""
        refused: list[str] = []
        refusal: HeadraceError | None = None
        while due := await self._leftovers.list_deletions(after=after, count_max=_PAGE):
            for item in due:
                try:
                    if item.s3_upload_id is not None:
                        await self._bucket.abort_multipart(item.object_key, item.s3_upload_id)
                    await self._bucket.delete(item.object_key)
                except HeadraceError as error:
                    if error.reason is Reason.BLOB_STORE_UNAVAILABLE:
                        raise
                    refused.append(item.object_key)
                    refusal = error
                    continue
                await self._leftovers.deleted(item.object_key)
                deleted += 1
            after = due[-1].object_key
        if refusal is not None:
            keys = refused[:_REFUSED_NAMED_MAX]
            _LOG.warning("S3 refuses to delete objects", objects=len(refused), keys=keys)
            raise refusal
        return deleted

    async def reconcile(self, *, dry_run: bool, older_than_s: float) -> Report:
        """Compare bucket and manifest; remove orphans unless `dry_run`.

        Args:
            dry_run: only report.
            older_than_s: younger objects are left alone, whatever the manifest says.
        """
        objects, object_count = await self._orphans(
            self._bucket.list_objects(self._prefix), dry_run, older_than_s
        )
        uploads, upload_count = await self._orphans(
            self._bucket.list_multiparts(self._prefix), dry_run, older_than_s
        )
        missing, missing_count = await self._missing()
        return Report(
            orphan_objects=objects,
            orphan_object_count=object_count,
            orphan_uploads=uploads,
            orphan_upload_count=upload_count,
            missing_objects=missing,
            missing_object_count=missing_count,
            removed=not dry_run,
        )

    async def _orphans(
        self, pages: AsyncIterator[list[StoredObject]], dry_run: bool, older_than_s: float
    ) -> tuple[tuple[str, ...], int]:
        latest = datetime.now(UTC) - timedelta(seconds=older_than_s)
        named: list[str] = []
        count = 0
        async for page in pages:
            for item in await self._unknown([item for item in page if item.modified_at <= latest]):
                count += 1
                if len(named) < _LIST_MAX:
                    named.append(item.key)
                if dry_run:
                    continue
                if item.s3_upload_id is not None:
                    await self._bucket.abort_multipart(item.key, item.s3_upload_id)
                else:
                    await self._bucket.delete(item.key)
        return tuple(named), count

    async def _unknown(self, items: list[StoredObject]) -> list[StoredObject]:
        """Return the objects, and the multipart uploads, that no row stands for."""
        keys = [item.key for item in items]
        known, ids = await self._leftovers.known_keys(keys), await self._leftovers.upload_ids(keys)
        return [
            item
            for item in items
            # Of several multipart uploads to a key (gateways that began it at the same
            # time, of which one died) the row names one, and that never changes.
            if (
                item.key not in known
                if item.s3_upload_id is None
                else ids.get(item.key, "") not in (None, item.s3_upload_id)
            )
        ]

    async def _missing(self) -> tuple[tuple[str, ...], int]:
        named: list[str] = []
        count, after = 0, ""
        while page := await self._leftovers.list_blob_keys(after=after, count_max=_PAGE):
            for key, size in page:
                if await self._bucket.size(key) != size:
                    count += 1
                    if len(named) < _LIST_MAX:
                        named.append(key)
            after = page[-1][0]
        return tuple(named), count
