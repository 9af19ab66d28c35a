"""Uploads: from the first byte to the visible artifact.

The order is always the same: the upload's row, the bytes, the check of every
byte, the manifest. Whatever is killed between two of these leaves a row that
protects the key, and an upload that can be resumed; nothing is visible before
the last. S3 is asked which parts it has; the rows say which of them came
through a gateway, and were therefore verified. The others (sent to signed
URLs) are verified before the artifact is published: by S3's own SHA-256 where
the server was found to check it, else by reading them back.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID, uuid4

import structlog

from gateway.artifacts.slots import Slots, Turns
from gateway.blobs.bucket import Bucket, StoredPart
from gateway.blobs.errors import UploadForgottenError
from gateway.domain.artifacts import Content, part_range
from gateway.domain.errors import HeadraceError, Reason
from gateway.store.artifacts import Artifact, ArtifactStore, Target, Upload, upload_not_found
from gateway.telemetry import METRICS

_LOG = structlog.get_logger(__name__)

_REREADS_MAX: Final = 4
# Some servers forget the upload a moment before the object that it became appears.
_WHOLE_AFTER_S: Final = (0.0, 0.2, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadState:
    """An upload and the numbers of the parts that S3 has of it, ascending."""

    upload: Upload
    stored_parts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPart:
    """A PUT that stores one part."""

    part_number: int
    url: str
    headers: dict[str, str]


class Uploads:
    """Takes content into the bucket and publishes it."""

    def __init__(
        self,
        store: ArtifactStore,
        bucket: Bucket,
        *,
        namespace: str,
        slots: Slots,
        direct: bool,
        signed_expiry_s: int,
    ) -> None:
        """Keep the parts.

        Args:
            store: the manifest.
            bucket: the content.
            namespace: of this database, see `ArtifactStore.namespace`.
            slots: shared by everything that uploads.
            direct: whether URLs may be signed.
            signed_expiry_s: how long a signed URL is valid.
        """
        self._store = store
        self._bucket = bucket
        self._namespace = namespace
        self._slots = slots
        self._turns = Turns()
        self._direct = direct
        self._signed_expiry_s = signed_expiry_s

    # ---- small files --------------------------------------------------------

    async def put_small(
        self, target: Target, content: Content, chunks: AsyncIterator[bytes]
    ) -> tuple[Artifact, bool]:
        """Store a file of one part and publish it.

        Returns:
            The artifact, and whether its content was there already (nothing is
            taken from `chunks` then).

        Raises:
            HeadraceError: DIGEST_MISMATCH, or as `ArtifactStore.begin` and the bucket.
        """
        known = await self._adopt(target, content)
        if known is not None:
            return known, True
        upload = await self._begin(target, content, resumable=False)
        try:
            async with self._slots.take(upload.upload_id):
                await self._bucket.put(
                    upload.object_key,
                    chunks,
                    size=content.size,
                    sha256=content.digest,
                    content_type=target.content_type,
                )
            METRICS.artifact_bytes_received.inc(content.size)
            return await self._store.publish(target.workspace_id, upload), False
        except Exception:
            # If the process dies instead, the row expires and is reaped.
            await self._store.discard_upload(upload.run_id, upload.upload_id)
            raise

    # ---- large files --------------------------------------------------------

    async def begin(self, target: Target, content: Content) -> Artifact | UploadState:
        """Publish content that is there already; else begin or find its upload."""
        known = await self._adopt(target, content)
        if known is not None:
            return known
        for _ in range(2):
            upload = await self._named(await self._begin(target, content, resumable=True))
            try:
                return await self._state(upload)
            except UploadForgottenError:
                done = await self._recover(target.workspace_id, upload)
                if done is not None:
                    return done
        raise HeadraceError(
            Reason.BLOB_STORE_UNAVAILABLE,
            f"S3 bucket {self._bucket.name!r} forgets uploads as soon as they begin",
            retry_after_ms=1_000,
            bucket=self._bucket.name,
        )

    async def put_part(
        self,
        workspace_id: int,
        run_id: UUID,
        upload_id: UUID,
        part_number: int,
        chunks: AsyncIterator[bytes],
    ) -> None:
        """Forward one part to S3 while it arrives, and record it.

        Raises:
            HeadraceError: UPLOAD_NOT_FOUND, FIELD_INVALID, DIGEST_MISMATCH, what
                `chunks` raises, or the bucket's.
        """
        # Two clients may share an upload. Their second copy of a part is not sent to S3:
        # there are servers that fail a completion which meets one.
        async with self._turns.take((upload_id, part_number)) as waited:
            upload = await self._named(
                await self._store.get_upload(workspace_id, run_id, upload_id)
            )
            _, length = part_range(upload.content.size, part_number)
            if waited and part_number in upload.etags:
                return
            async with self._slots.take(upload_id):
                etag = await self._forward_part(upload, part_number, chunks, length)
            await self._store.record_part(upload, part_number, etag)
        METRICS.artifact_bytes_received.inc(length)

    async def _forward_part(
        self, upload: Upload, part_number: int, chunks: AsyncIterator[bytes], length: int
    ) -> str:
        try:
            return await self._bucket.put_part(
                upload.object_key,
                upload.s3_upload_id or "",
                part_number,
                chunks,
                size=length,
                sha256=upload.content.part_sha256(part_number),
            )
        except UploadForgottenError:
            await self._drop_unless_whole(upload)
            raise upload_not_found(upload.upload_id) from None

    async def state(self, workspace_id: int, run_id: UUID, upload_id: UUID) -> UploadState:
        """Return an upload and its stored parts.

        Raises:
            HeadraceError: UPLOAD_NOT_FOUND, also when S3 has forgotten it.
        """
        upload = await self._named(await self._store.get_upload(workspace_id, run_id, upload_id))
        try:
            return await self._state(upload)
        except UploadForgottenError:
            await self._drop_unless_whole(upload)
            raise upload_not_found(upload_id) from None

    async def complete(self, workspace_id: int, run_id: UUID, upload_id: UUID) -> Artifact:
        """Join the parts, verify those that nobody verified yet, and publish.

        Raises:
            HeadraceError: UPLOAD_NOT_FOUND, UPLOAD_INCOMPLETE, DIGEST_MISMATCH.
        """
        upload = await self._named(await self._store.get_upload(workspace_id, run_id, upload_id))
        content = upload.content
        try:
            parts = self._whole(upload, await self._parts(upload))
            missing = [n for n in range(1, content.part_count + 1) if n not in parts]
            if missing:
                raise HeadraceError(
                    Reason.UPLOAD_INCOMPLETE,
                    f"{len(missing)} of {content.part_count} parts are missing",
                    part_number=missing[0],
                    missing=len(missing),
                )
            unverified = await self._unverified(upload, parts)
            await self._bucket.complete_multipart(
                upload.object_key,
                upload.s3_upload_id or "",
                {n: (part.etag, content.part_sha256(n)) for n, part in parts.items()},
            )
        except UploadForgottenError:
            # A gateway may have died, or another call been first, after joining.
            done = await self._recover(workspace_id, upload)
            if done is None:
                raise upload_not_found(upload_id) from None
            return done
        return await self._verify_and_publish(workspace_id, upload, unverified)

    async def abort(self, workspace_id: int, run_id: UUID, upload_id: UUID) -> bool:
        """End an upload and have its parts deleted; return whether there was one."""
        await self._store.check_run(workspace_id, run_id)
        return await self._store.discard_upload(run_id, upload_id)

    @property
    def direct(self) -> bool:
        """Whether URLs may be signed."""
        return self._direct

    async def sign_parts(
        self, workspace_id: int, run_id: UUID, upload_id: UUID, part_numbers: Iterable[int]
    ) -> list[SignedPart]:
        """Sign a PUT for each part.

        Raises:
            HeadraceError: DIRECT_UNAVAILABLE, UPLOAD_NOT_FOUND, FIELD_INVALID.
        """
        check_direct(self._direct)
        upload = await self._named(await self._store.get_upload(workspace_id, run_id, upload_id))
        signed = []
        for number in part_numbers:
            part_range(upload.content.size, number)  # checks it
            url, headers = await self._bucket.sign_part(
                upload.object_key,
                upload.s3_upload_id or "",
                number,
                sha256=upload.content.part_sha256(number),
                expires_s=self._signed_expiry_s,
            )
            signed.append(SignedPart(part_number=number, url=url, headers=headers))
        await self._store.touch(upload)
        return signed

    # ---- steps --------------------------------------------------------------

    async def _adopt(self, target: Target, content: Content) -> Artifact | None:
        known = await self._store.adopt(target, size=content.size, digest=content.digest)
        if known is not None:
            METRICS.artifact_bytes_deduplicated.inc(content.size)
        return known

    async def _begin(self, target: Target, content: Content, *, resumable: bool) -> Upload:
        upload_id = uuid4()
        return await self._store.begin(
            target,
            content,
            upload_id=upload_id,
            object_key=f"{self._bucket.key_prefix}{self._namespace}/{target.run_id.hex}/{upload_id.hex}",
            resumable=resumable,
        )

    async def _named(self, upload: Upload) -> Upload:
        """Return the upload with its multipart upload begun at S3."""
        if upload.s3_upload_id is not None:
            return upload
        mine = await self._bucket.begin_multipart(
            upload.object_key, content_type=upload.content_type
        )
        s3_upload_id = await self._store.name(upload, mine)
        if s3_upload_id != mine:  # another call was faster
            await self._bucket.abort_multipart(upload.object_key, mine)
        return replace(upload, s3_upload_id=s3_upload_id)

    async def _parts(self, upload: Upload) -> dict[int, StoredPart]:
        return await self._bucket.list_parts(upload.object_key, upload.s3_upload_id or "")

    @staticmethod
    def _whole(upload: Upload, parts: dict[int, StoredPart]) -> dict[int, StoredPart]:
        """Return the parts that belong to the upload and have their right size."""
        count, size = upload.content.part_count, upload.content.size
        return {
            number: part
            for number, part in parts.items()
            if 1 <= number <= count and part.size == part_range(size, number)[1]
        }

    async def _state(self, upload: Upload) -> UploadState:
        parts = self._whole(upload, await self._parts(upload))
        return UploadState(upload=upload, stored_parts=tuple(sorted(parts)))

    async def _unverified(self, upload: Upload, parts: dict[int, StoredPart]) -> list[int]:
        """Return the parts whose bytes no gateway has seen and no checksum vouches for."""
        strange = [n for n, part in parts.items() if upload.etags.get(n) != part.etag]
        if not strange or not await self._bucket.checks_sha256():
            return strange
        return [n for n in strange if parts[n].sha256 != upload.content.part_sha256(n)]

    async def _recover(self, workspace_id: int, upload: Upload) -> Artifact | None:
        """Publish an upload whose parts are joined already; else end it."""
        if not await self._drop_unless_whole(upload):
            return None
        every = range(1, upload.content.part_count + 1)
        unverified = [number for number in every if number not in upload.etags]
        return await self._verify_and_publish(workspace_id, upload, unverified)

    async def _drop_unless_whole(self, upload: Upload) -> bool:
        """Return whether the object exists; end the upload if not: S3 forgot it."""
        for delay_s in _WHOLE_AFTER_S:
            await asyncio.sleep(delay_s)
            if await self._bucket.size(upload.object_key) == upload.content.size:
                return True
        _LOG.warning("S3 forgot an upload; it starts anew", key=upload.object_key)
        await self._store.discard_upload(upload.run_id, upload.upload_id)
        return False

    async def _verify_and_publish(
        self, workspace_id: int, upload: Upload, unverified: list[int]
    ) -> Artifact:
        wrong = await self._reread(upload, unverified)
        if wrong:
            await self._store.discard_upload(upload.run_id, upload.upload_id)
            raise HeadraceError(
                Reason.DIGEST_MISMATCH,
                f"part {wrong[0]} does not have its SHA-256; the upload was dropped:"
                " call BeginUpload again",
                part_number=wrong[0],
            )
        return await self._store.publish(workspace_id, upload)

    async def _reread(self, upload: Upload, part_numbers: list[int]) -> list[int]:
        """Read parts back from the object; return those whose SHA-256 is wrong."""
        if not part_numbers:
            return []
        wrong: list[int] = []
        todo = iter(part_numbers)

        async def work() -> None:
            for number in todo:
                offset, length = part_range(upload.content.size, number)
                async with self._slots.take(upload.upload_id):
                    digest = await self._bucket.sha256(
                        upload.object_key, offset=offset, length=length
                    )
                if digest != upload.content.part_sha256(number):
                    wrong.append(number)
                await self._store.touch(upload)  # a long check is progress too

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(_REREADS_MAX, len(part_numbers))):
                tasks.create_task(work())
        return sorted(wrong)


def check_direct(direct: bool) -> None:
    """Raise DIRECT_UNAVAILABLE unless URLs may be signed."""
    if not direct:
        raise HeadraceError(
            Reason.DIRECT_UNAVAILABLE,
            "this gateway signs no URLs (artifact_direct is off): send the bytes through it",
        )
