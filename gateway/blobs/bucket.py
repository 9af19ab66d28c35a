"""One S3 bucket: streaming puts and gets, multipart uploads, signed URLs, listing.

Bytes are forwarded while they arrive; nothing here holds a part in memory. An
operation either succeeds or raises a HeadraceError (see `gateway.blobs.errors`).
Requests with a streamed body are tried once, since their bytes are gone; all
others are retried by botocore, three times in all. Time limits are on progress:
S3 must accept or produce something every `stall_timeout_s`, whatever a whole
transfer takes.
"""

import asyncio
import base64
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from botocore.exceptions import ClientError

from gateway.blobs.body import Body
from gateway.blobs.clients import BucketSettings, Clients, open_clients
from gateway.blobs.errors import BlobMissingError, UploadForgottenError, translate
from gateway.blobs.hashing import Hasher
from gateway.domain.artifacts import DOWNLOAD_CHUNK_BYTES
from gateway.domain.errors import HeadraceError, Reason

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPart:
    """A part as S3 lists it; `sha256` only where the server keeps it. Size in bytes."""

    etag: str
    size: int
    sha256: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object, or an unfinished multipart upload (`s3_upload_id`), as S3 lists it."""

    key: str
    modified_at: datetime
    s3_upload_id: str | None = None


class Bucket:
    """An open bucket. An async context manager; make one a process."""

    def __init__(self, settings: BucketSettings) -> None:
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._clients: Clients
        self._hasher: Hasher
        self._checks_sha256: bool | None = None
        self._probe_lock = asyncio.Lock()

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self._settings.bucket

    @property
    def key_prefix(self) -> str:
        """What every key begins with."""
        return self._settings.key_prefix

    async def __aenter__(self) -> Self:
        self._clients = await self._stack.enter_async_context(open_clients(self._settings))
        self._hasher = self._stack.enter_context(contextlib.closing(Hasher(self._settings)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    # ---- writing ------------------------------------------------------------

    async def put(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        *,
        size: int,
        sha256: bytes,
        content_type: str = "application/octet-stream",
    ) -> None:
        """Store an object of `size` bytes with this SHA-256, or nothing.

        Raises:
            HeadraceError: DIGEST_MISMATCH, what `chunks` raises, or the store's.
        """
        await self._send(
            "PutObject",
            chunks,
            size=size,
            sha256=sha256,
            Key=key,
            ContentType=content_type,
            **self._object_options(),
        )

    async def begin_multipart(self, key: str, *, content_type: str) -> str:
        """Begin a multipart upload and return S3's id of it."""
        answer = await self._call(
            "CreateMultipartUpload",
            self._clients.control.create_multipart_upload(
                Bucket=self.name,
                Key=key,
                ContentType=content_type,
                ChecksumAlgorithm="SHA256",
                **self._object_options(),
            ),
        )
        upload_id: str = answer["UploadId"]
        return upload_id

    async def put_part(
        self,
        key: str,
        s3_upload_id: str,
        part_number: int,
        chunks: AsyncIterator[bytes],
        *,
        size: int,
        sha256: bytes,
    ) -> str:
        """Store a part of `size` bytes with this SHA-256 and return its ETag.

        Raises:
            UploadForgottenError: S3 does not know the upload.
            HeadraceError: DIGEST_MISMATCH, what `chunks` raises, or the store's.
        """
        answer = await self._send(
            "UploadPart",
            chunks,
            size=size,
            sha256=sha256,
            Key=key,
            UploadId=s3_upload_id,
            PartNumber=part_number,
        )
        etag: str = answer["ETag"]
        return etag

    async def list_parts(self, key: str, s3_upload_id: str) -> dict[int, StoredPart]:
        """Return the parts that S3 has, by number.

        Raises:
            UploadForgottenError: S3 does not know the upload.
        """
        parts: dict[int, StoredPart] = {}
        marker: dict[str, Any] = {}
        while True:
            answer = await self._call(
                "ListParts",
                self._clients.control.list_parts(
                    Bucket=self.name, Key=key, UploadId=s3_upload_id, **marker
                ),
            )
            for part in answer.get("Parts", ()):
                if "ETag" not in part:
                    raise HeadraceError(
                        Reason.INTERNAL,
                        f"the S3 server of bucket {self.name!r} lists parts without their ETags,"
                        " which completing an upload needs: use another server",
                    )
                checksum = part.get("ChecksumSHA256")
                parts[part["PartNumber"]] = StoredPart(
                    etag=part["ETag"],
                    size=part["Size"],
                    sha256=base64.b64decode(checksum) if checksum else None,
                )
            if not answer.get("IsTruncated"):
                return parts
            marker = {"PartNumberMarker": answer["NextPartNumberMarker"]}

    async def complete_multipart(
        self, key: str, s3_upload_id: str, parts: Mapping[int, tuple[str, bytes]]
    ) -> None:
        """Join parts, given as number → (ETag, SHA-256), into the object.

        Raises:
            UploadForgottenError: S3 does not know the upload.
        """
        listed = [
            {
                "PartNumber": number,
                "ETag": etag,
                "ChecksumSHA256": base64.b64encode(sha256).decode(),
            }
            for number, (etag, sha256) in sorted(parts.items())
        ]
        await self._call(
            "CompleteMultipartUpload",
            self._clients.control.complete_multipart_upload(
                Bucket=self.name, Key=key, UploadId=s3_upload_id, MultipartUpload={"Parts": listed}
            ),
        )

    async def abort_multipart(self, key: str, s3_upload_id: str) -> None:
        """Abort a multipart upload and delete its parts. An unknown one is no error."""
        with contextlib.suppress(UploadForgottenError, BlobMissingError):
            await self._call(
                "AbortMultipartUpload",
                self._clients.control.abort_multipart_upload(
                    Bucket=self.name, Key=key, UploadId=s3_upload_id
                ),
            )

    async def delete(self, key: str) -> None:
        """Delete an object. A missing one is no error."""
        with contextlib.suppress(BlobMissingError):
            await self._call(
                "DeleteObject", self._clients.control.delete_object(Bucket=self.name, Key=key)
            )

    # ---- reading ------------------------------------------------------------

    async def size(self, key: str) -> int | None:
        """Return the object's size in bytes; None when there is none."""
        try:
            answer = await self._call(
                "HeadObject", self._clients.control.head_object(Bucket=self.name, Key=key)
            )
        except BlobMissingError:
            return None
        size: int = answer["ContentLength"]
        return size

    async def read(
        self, key: str, *, offset: int, length: int, chunk_bytes: int = DOWNLOAD_CHUNK_BYTES
    ) -> AsyncGenerator[bytes, None]:
        """Yield exactly `length` bytes from `offset`, in chunks of at most `chunk_bytes`.

        Close the iterator (`aclosing`) to free its connection early.

        Raises:
            BlobMissingError: there is no such object.
            HeadraceError: the store failed, perhaps in the middle.
        """
        if length == 0:
            return
        answer = await self._call(
            "GetObject",
            self._clients.data.get_object(
                Bucket=self.name, Key=key, Range=f"bytes={offset}-{offset + length - 1}"
            ),
        )
        left = length
        body = answer["Body"]
        try:
            content = body.content
            while left:
                # aiohttp bounds the wait for each piece by `read_timeout`.
                chunk = await self._call("GetObject", content.read(min(chunk_bytes, left)))
                if not chunk:
                    raise translate(ConnectionResetError(), operation="GetObject", bucket=self.name)
                left -= len(chunk)
                yield chunk
        finally:
            if left:
                body.close()  # the rest will not be read: the connection is of no more use
            else:
                await body.release()

    async def sha256(self, key: str, *, offset: int, length: int) -> bytes:
        """Return the SHA-256 of `length` bytes (1 or more) of an object from `offset`.

        Raises:
            BlobMissingError: there is no such object.
            HeadraceError: the store failed, perhaps in the middle.
        """
        return await self._call("GetObject", self._hasher.sha256(key, offset=offset, length=length))

    async def list_objects(self, prefix: str) -> AsyncIterator[list[StoredObject]]:
        """Yield every object whose key begins with `prefix`, in pages of at most 1,000."""
        token: dict[str, Any] = {}
        while True:
            answer = await self._call(
                "ListObjectsV2",
                self._clients.control.list_objects_v2(Bucket=self.name, Prefix=prefix, **token),
            )
            yield [
                StoredObject(key=item["Key"], modified_at=item["LastModified"])
                for item in answer.get("Contents", ())
            ]
            if not answer.get("IsTruncated"):
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    async def list_multiparts(self, prefix: str) -> AsyncIterator[list[StoredObject]]:
        """Yield every unfinished multipart upload whose key begins so, in pages."""
        marker: dict[str, Any] = {}
        while True:
            try:
                answer = await self._call(
                    "ListMultipartUploads",
                    self._clients.control.list_multipart_uploads(
                        Bucket=self.name, Prefix=prefix, **marker
                    ),
                )
            except UploadForgottenError:  # rclone's way to say that there never was one
                return
            yield [
                StoredObject(
                    key=item["Key"], modified_at=item["Initiated"], s3_upload_id=item["UploadId"]
                )
                for item in answer.get("Uploads", ())
            ]
            if not answer.get("IsTruncated"):
                return
            marker = {
                "KeyMarker": answer["NextKeyMarker"],
                "UploadIdMarker": answer["NextUploadIdMarker"],
            }

    # ---- signing ------------------------------------------------------------

    async def sign_part(
        self, key: str, s3_upload_id: str, part_number: int, *, sha256: bytes, expires_s: int
    ) -> tuple[str, dict[str, str]]:
        """Return the URL and the headers of a PUT that stores exactly this part."""
        checksum = base64.b64encode(sha256).decode()
        url: str = await self._clients.signer.generate_presigned_url(
            "upload_part",
            Params={
                "Bucket": self.name,
                "Key": key,
                "UploadId": s3_upload_id,
                "PartNumber": part_number,
                "ChecksumSHA256": checksum,
            },
            ExpiresIn=expires_s,
        )
        return url, {"x-amz-checksum-sha256": checksum}

    async def sign_get(self, key: str, *, expires_s: int) -> str:
        """Return the URL of a GET of the object; it takes Range headers."""
        url: str = await self._clients.signer.generate_presigned_url(
            "get_object", Params={"Bucket": self.name, "Key": key}, ExpiresIn=expires_s
        )
        return url

    # ---- knowing the server -------------------------------------------------

    async def checks_sha256(self) -> bool:
        """Return whether the server refuses bytes that have another SHA-256 than announced.

        Found out by trying, once a process: some servers store what they are
        sent and never look at the checksum.
        """
        async with self._probe_lock:
            if self._checks_sha256 is None:
                self._checks_sha256 = await self._probe_checksums()
            return self._checks_sha256

    async def _probe_checksums(self) -> bool:
        key = f"{self.key_prefix}probe/{uuid.uuid4().hex}"
        try:
            await self._call(
                "PutObject",
                self._clients.control.put_object(
                    Bucket=self.name,
                    Key=key,
                    Body=b"checksum probe",
                    ChecksumSHA256=base64.b64encode(bytes(32)).decode(),
                    # There are buckets that deny what is not encrypted: no answer would count.
                    **self._object_options(),
                ),
            )
        except HeadraceError as error:
            if error.reason in (Reason.DIGEST_MISMATCH, Reason.INTERNAL):
                return True
            raise
        await self.delete(key)
        return False

    async def check(self) -> float:
        """Ask for the bucket; return the server's clock minus ours, in seconds.

        Raises:
            HeadraceError: the bucket does not exist or may not be seen.
        """
        try:
            answer = await self._call(
                "HeadBucket", self._clients.control.head_bucket(Bucket=self.name)
            )
        except BlobMissingError as error:
            missing = ClientError({"Error": {"Code": "NoSuchBucket"}}, "HeadBucket")
            raise translate(missing, operation="HeadBucket", bucket=self.name) from error
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            return 0.0
        return parsedate_to_datetime(date).timestamp() - time.time()

    # ---- internals ----------------------------------------------------------

    def _object_options(self) -> dict[str, str]:
        options = {
            "ServerSideEncryption": self._settings.server_side_encryption,
            "SSEKMSKeyId": self._settings.kms_key_id,
            "StorageClass": self._settings.storage_class,
        }
        return {name: value for name, value in options.items() if value}

    async def _send(
        self,
        operation: str,
        chunks: AsyncIterator[bytes],
        *,
        size: int,
        sha256: bytes,
        **options: Any,
    ) -> Any:
        body = Body(chunks, size=size, sha256=sha256)
        method = {"PutObject": "put_object", "UploadPart": "upload_part"}[operation]
        try:
            if size == 0:  # nothing will be pulled, so nothing would be verified
                async for _ in body:
                    pass
            async with asyncio.timeout(self._settings.stall_timeout_s) as timeout:
                body.watch(timeout, self._settings.stall_timeout_s)
                return await getattr(self._clients.data, method)(
                    Bucket=self.name,
                    Body=body if size else b"",
                    ContentLength=size,
                    ChecksumSHA256=base64.b64encode(sha256).decode(),
                    **options,
                )
        except Exception as error:
            if body.failure is not None:
                raise body.failure from error
            raise translate(error, operation=operation, bucket=self.name) from error

    async def _call(self, operation: str, awaitable: Awaitable[_T]) -> _T:
        try:
            return await awaitable
        except Exception as error:
            raise translate(error, operation=operation, bucket=self.name) from error
