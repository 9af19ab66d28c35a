"""Whether the gateway's own credentials can do in the bucket all that it needs.

Tries every operation on an object of its own, under `<key_prefix>probe/`, and
removes it again. The order is that of an upload, so that the first bad line is
the first thing to change; what depends on it is not tried.
"""

import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final

from gateway.blobs.bucket import Bucket
from gateway.blobs.clients import BucketSettings
from gateway.blobs.errors import translate
from gateway.domain.errors import HeadraceError
from gateway.domain.findings import Finding, Health, good

_CLOCK_SKEW_WARN_S: Final = 60.0
_CLOCK_SKEW_MAX_S: Final = 900.0  # beyond it S3 refuses every signature
_CONTENT: Final = b"headrace doctor\n"
_SHA256: Final = hashlib.sha256(_CONTENT).digest()


async def diagnose(settings: BucketSettings) -> list[Finding]:
    """Check one bucket."""
    try:
        async with Bucket(settings) as bucket:
            return await _Examination(bucket).run()
    except (OSError, ValueError) as error:
        problem = translate(error, operation="HeadBucket", bucket=settings.bucket)
        return [_bad("S3", problem)]


class _Examination:
    """The findings so far."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._key = f"{bucket.key_prefix}probe/{uuid.uuid4().hex}"
        self._findings: list[Finding] = []

    async def run(self) -> list[Finding]:
        bucket, key = self._bucket, self._key
        done, skew_s = await self._try("bucket", bucket.check(), f"{bucket.name!r} is there")
        if not done:
            return self._findings
        self._findings.append(_clock(skew_s))
        done, _ = await self._try("PutObject", self._put(), "allowed")
        if done:
            await self._try("GetObject", self._get(), "allowed, and the bytes are the same")
            await self._try("DeleteObject", bucket.delete(key), "allowed")
            await self._checksums()
        await self._multipart()
        await self._try("ListObjectsV2", _first(bucket.list_objects(key)), "allowed")
        await self._try("ListMultipartUploads", _first(bucket.list_multiparts(key)), "allowed")
        return self._findings

    async def _multipart(self) -> None:
        """Go through an upload in parts to its end, then abort another."""
        bucket, key = self._bucket, self._key
        done, upload_id = await self._try("CreateMultipartUpload", self._begin(), "allowed")
        if not done:
            return
        await self._try("UploadPart", self._part(upload_id), "allowed")
        done, parts = await self._try("ListParts", bucket.list_parts(key, upload_id), "allowed")
        if done and parts:
            joined = {number: (part.etag, _SHA256) for number, part in parts.items()}
            await self._try(
                "CompleteMultipartUpload",
                bucket.complete_multipart(key, upload_id, joined),
                "allowed",
            )
            with contextlib.suppress(HeadraceError):  # a finding already, if it is denied
                await bucket.delete(key)
            upload_id = await self._begin()
        await self._try("AbortMultipartUpload", bucket.abort_multipart(key, upload_id), "allowed")

    async def _try(self, check: str, work: Awaitable[Any], found: str) -> tuple[bool, Any]:
        try:
            result = await work
        except HeadraceError as error:
            self._findings.append(_bad(f"S3 {check}", error))
            return False, None
        self._findings.append(good(f"S3 {check}", found))
        return True, result

    async def _put(self) -> None:
        await self._bucket.put(self._key, _content(), size=len(_CONTENT), sha256=_SHA256)

    async def _begin(self) -> str:
        return await self._bucket.begin_multipart(self._key, content_type="text/plain")

    async def _part(self, upload_id: str) -> None:
        await self._bucket.put_part(
            self._key, upload_id, 1, _content(), size=len(_CONTENT), sha256=_SHA256
        )

    async def _get(self) -> None:
        chunks = self._bucket.read(self._key, offset=0, length=len(_CONTENT))
        if b"".join([chunk async for chunk in chunks]) != _CONTENT:
            raise translate(ValueError(), operation="GetObject", bucket=self._bucket.name)

    async def _checksums(self) -> None:
        try:
            checks = await self._bucket.checks_sha256()
        except HeadraceError as error:
            self._findings.append(_bad("S3 checksums", error))
            return
        found = (
            "the server refuses wrong SHA-256s"
            if checks
            else "the server stores wrong SHA-256s: parts that bypass the gateway are read back"
        )
        self._findings.append(good("S3 checksums", found))


async def _content() -> AsyncIterator[bytes]:
    yield _CONTENT


async def _first(pages: AsyncIterator[Any]) -> None:
    async for _ in pages:
        return


def _bad(check: str, error: HeadraceError) -> Finding:
    found = error.metadata.get("permission", error.reason.name.lower())
    return Finding(check=check, health=Health.BAD, found=found, remedy=error.message)


def _clock(skew_s: float) -> Finding:
    found = f"{abs(skew_s):.1f} s apart"
    if abs(skew_s) <= _CLOCK_SKEW_WARN_S:
        return good("clock of S3", found)
    return Finding(
        check="clock of S3",
        health=Health.BAD if abs(skew_s) > _CLOCK_SKEW_MAX_S else Health.WARN,
        found=found,
        remedy="set the gateway's clock right (NTP): S3 refuses signatures that are 15 minutes off",
    )
