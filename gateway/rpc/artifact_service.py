"""ArtifactService: convert, call, convert.

Transfers are `gateway.artifacts`' business; here requests become values, and
streams of messages become streams of bytes with a limit on silence.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from headrace.v1 import artifact_service_pb2 as pb
from headrace.v1 import artifact_service_pb2_grpc as pb_grpc

from gateway.artifacts.precedence import Precedence
from gateway.artifacts.uploads import UploadState
from gateway.artifacts.wiring import Artifacts
from gateway.domain.artifacts import (
    CHUNK_BYTES_MAX,
    CONTENT_TYPE_CHARACTERS_MAX,
    CONTENT_TYPE_DEFAULT,
    SHA256_BYTES,
    SIGNED_PARTS_MAX,
    SINGLE_BYTES_MAX,
    Content,
    check_path,
    part_size,
)
from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.identity import current_identity
from gateway.rpc import fields
from gateway.store.artifacts import Artifact, Target

_PAGE_DEFAULT: Final = 1_000
_PAGE_MAX: Final = 5_000
_PROGRESS_BYTES: Final = 65_536  # in the time limit; less counts as silence


class ArtifactService(pb_grpc.ArtifactServiceServicer):
    """See artifact_service.proto."""

    def __init__(
        self,
        artifacts: Artifacts | None,
        precedence: Precedence,
        *,
        stall_timeout_s: float,
        upload_expiry_s: float,
        signed_expiry_s: int,
    ) -> None:
        """Serve `artifacts`; without a bucket every method fails with ARTIFACTS_DISABLED."""
        self._available = artifacts
        self._precedence = precedence
        self._stall_timeout_s = stall_timeout_s
        self._upload_expiry_s = upload_expiry_s
        self._signed_expiry_s = signed_expiry_s

    # ---- uploading ----------------------------------------------------------

    async def UploadArtifact(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadArtifactRequest], context: Any
    ) -> pb.UploadArtifactResponse:
        """Store a small file from one stream."""
        uploads = self._artifacts.uploads
        header = await _header(request_iterator, self._stall_timeout_s)
        if header.size > SINGLE_BYTES_MAX:
            raise HeadraceError(
                Reason.LIMIT_EXCEEDED,
                f"UploadArtifact takes at most {SINGLE_BYTES_MAX} bytes: use BeginUpload",
                field="size",
                value=header.size,
                limit=SINGLE_BYTES_MAX,
            )
        content = Content(size=header.size, part_sha256s=header.digest)
        chunks = self._chunks(request_iterator)
        with self._artifacts.admission.admit():
            artifact, known = await uploads.put_small(_target(header), content, chunks)
        self._artifacts.cleanup.wake()
        return pb.UploadArtifactResponse(artifact=_artifact(artifact), deduplicated=known)

    async def BeginUpload(  # noqa: N802
        self, request: pb.BeginUploadRequest, context: Any
    ) -> pb.BeginUploadResponse:
        """Begin or find the upload of a large file."""
        if request.size <= SINGLE_BYTES_MAX:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"files of at most {SINGLE_BYTES_MAX} bytes go by UploadArtifact",
                field="size",
                value=request.size,
                limit=SINGLE_BYTES_MAX,
            )
        content = Content(size=request.size, part_sha256s=request.part_sha256s)
        begun = await self._artifacts.uploads.begin(_target(request), content)
        if isinstance(begun, Artifact):
            return pb.BeginUploadResponse(artifact=_artifact(begun))
        return pb.BeginUploadResponse(upload=self._upload(begun))

    async def UploadPart(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadPartRequest], context: Any
    ) -> pb.UploadPartResponse:
        """Forward one part."""
        uploads = self._artifacts.uploads
        header = await _header(request_iterator, self._stall_timeout_s)
        chunks = self._chunks(request_iterator)
        with self._artifacts.admission.admit():
            await uploads.put_part(*_upload_of(header), header.part_number, chunks)
        return pb.UploadPartResponse(part_number=header.part_number)

    async def ListParts(  # noqa: N802
        self, request: pb.ListPartsRequest, context: Any
    ) -> pb.ListPartsResponse:
        """List the stored parts of an upload."""
        state = await self._artifacts.uploads.state(*_upload_of(request))
        return pb.ListPartsResponse(upload=self._upload(state))

    async def CompleteUpload(  # noqa: N802
        self, request: pb.CompleteUploadRequest, context: Any
    ) -> pb.CompleteUploadResponse:
        """Publish an upload whose parts are all stored."""
        artifact = await self._artifacts.uploads.complete(*_upload_of(request))
        self._artifacts.cleanup.wake()
        return pb.CompleteUploadResponse(artifact=_artifact(artifact))

    async def AbortUpload(  # noqa: N802
        self, request: pb.AbortUploadRequest, context: Any
    ) -> pb.AbortUploadResponse:
        """End an upload without an artifact."""
        aborted = await self._artifacts.uploads.abort(*_upload_of(request))
        self._artifacts.cleanup.wake()
        return pb.AbortUploadResponse(aborted=aborted)

    async def SignUploadParts(  # noqa: N802
        self, request: pb.SignUploadPartsRequest, context: Any
    ) -> pb.SignUploadPartsResponse:
        """Sign PUTs of parts."""
        if not 1 <= len(request.part_numbers) <= SIGNED_PARTS_MAX:
            raise HeadraceError(
                Reason.LIMIT_EXCEEDED,
                f"part_numbers must hold 1 to {SIGNED_PARTS_MAX} numbers",
                field="part_numbers",
                value=len(request.part_numbers),
                limit=SIGNED_PARTS_MAX,
            )
        expires_at = self._signed_until()
        signed = await self._artifacts.uploads.sign_parts(
            *_upload_of(request), request.part_numbers
        )
        return pb.SignUploadPartsResponse(
            requests=[
                pb.SignedRequest(part_number=part.part_number, url=part.url, headers=part.headers)
                for part in signed
            ],
            expire_time=expires_at,
        )

    # ---- reading ------------------------------------------------------------

    async def DownloadArtifact(  # type: ignore[override]  # noqa: N802 - writes to the context
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> None:
        """Send a range of an artifact."""
        downloads = self._artifacts.downloads
        workspace_id, run_id, path = _path_of(request)
        found = await downloads.find(workspace_id, run_id, path, digest=request.digest)
        artifact = found.artifact
        if request.offset > artifact.size:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"offset is beyond the artifact's {artifact.size} bytes",
                field="offset",
                value=request.offset,
                limit=artifact.size,
            )
        length = artifact.size - request.offset
        if request.HasField("length"):
            length = min(length, request.length)
        header = pb.DownloadArtifactHeader(
            artifact=_artifact(artifact), offset=request.offset, length=length
        )

        async def write(chunk: bytes) -> None:
            await self._precedence.give_way(len(chunk))
            await context.write(pb.DownloadArtifactResponse(chunk=chunk))

        with self._artifacts.admission.admit():
            await context.write(pb.DownloadArtifactResponse(header=header))
            await downloads.send(
                workspace_id, found, offset=request.offset, length=length, write=write
            )

    async def SignDownload(  # noqa: N802
        self, request: pb.SignDownloadRequest, context: Any
    ) -> pb.SignDownloadResponse:
        """Sign a GET of an artifact."""
        expires_at = self._signed_until()
        found = await self._artifacts.downloads.find(*_path_of(request))
        url = await self._artifacts.downloads.sign(found)
        return pb.SignDownloadResponse(
            artifact=_artifact(found.artifact),
            request=pb.SignedRequest(url=url),
            expire_time=expires_at,
        )

    async def ListArtifacts(  # noqa: N802
        self, request: pb.ListArtifactsRequest, context: Any
    ) -> pb.ListArtifactsResponse:
        """List a folder."""
        run_id = fields.run_id(request.run_id)
        folder = check_path(request.folder, field="folder") if request.folder else ""
        count = fields.page_size(request.page_size, default=_PAGE_DEFAULT, maximum=_PAGE_MAX)
        entries = await self._artifacts.store.list_artifacts(
            current_identity().workspace_id,
            run_id,
            folder=folder,
            recursive=request.recursive,
            after=_after(request.page_token, folder),
            count_max=count + 1,
        )
        page = entries[:count]
        return pb.ListArtifactsResponse(
            entries=[
                pb.ArtifactEntry(folder=entry[:-1])
                if isinstance(entry, str)
                else pb.ArtifactEntry(artifact=_artifact(entry))
                for entry in page
            ],
            next_page_token=_name(page[-1]) if len(entries) > count else "",
        )

    async def StatArtifact(  # noqa: N802
        self, request: pb.StatArtifactRequest, context: Any
    ) -> pb.StatArtifactResponse:
        """Read what is known of an artifact."""
        found = await self._artifacts.downloads.find(*_path_of(request))
        return pb.StatArtifactResponse(artifact=_artifact(found.artifact))

    async def DeleteArtifact(  # noqa: N802
        self, request: pb.DeleteArtifactRequest, context: Any
    ) -> pb.DeleteArtifactResponse:
        """Delete an artifact or a folder."""
        count = await self._artifacts.store.delete(*_path_of(request), recursive=request.recursive)
        self._artifacts.cleanup.wake()
        return pb.DeleteArtifactResponse(deleted_count=count)

    # ---- conversion ---------------------------------------------------------

    @property
    def _artifacts(self) -> Artifacts:
        if self._available is None:
            raise HeadraceError(
                Reason.ARTIFACTS_DISABLED,
                "this gateway stores no artifacts: set s3_bucket, or serve with --embedded",
            )
        return self._available

    async def _chunks(self, requests: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        """Yield the bytes of a stream; only the time spent waiting for the client counts.

        Raises:
            HeadraceError: TRANSFER_STALLED, LIMIT_EXCEEDED, OPEN_EXPECTED.
        """
        clock = asyncio.get_running_loop().time
        iterator = aiter(requests)
        stall_timeout_s = self._stall_timeout_s
        patience_s, received = stall_timeout_s, 0
        while True:
            began = clock()
            try:
                async with asyncio.timeout(max(patience_s, 0.001)):
                    request = await anext(iterator)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise HeadraceError(
                    Reason.TRANSFER_STALLED,
                    f"less than {_PROGRESS_BYTES} bytes arrived in {stall_timeout_s:g} seconds",
                ) from None
            chunk: bytes = request.chunk
            if request.WhichOneof("message") != "chunk":
                raise HeadraceError(
                    Reason.OPEN_EXPECTED, "after the header come only chunks", field="message"
                )
            if len(chunk) > CHUNK_BYTES_MAX:
                raise HeadraceError(
                    Reason.LIMIT_EXCEEDED,
                    f"a chunk holds at most {CHUNK_BYTES_MAX} bytes",
                    field="chunk",
                    value=len(chunk),
                    limit=CHUNK_BYTES_MAX,
                )
            patience_s -= clock() - began
            received += len(chunk)
            if received >= _PROGRESS_BYTES:
                patience_s, received = stall_timeout_s, 0
            await self._precedence.give_way(len(chunk))
            yield chunk

    def _upload(self, state: UploadState) -> pb.Upload:
        upload = state.upload
        expiry = timedelta(seconds=self._upload_expiry_s)
        return pb.Upload(
            upload_id=upload.upload_id.hex,
            part_size=part_size(upload.content.size),
            part_count=upload.content.part_count,
            stored_parts=state.stored_parts,
            direct_available=self._artifacts.uploads.direct,
            expire_time=_timestamp(upload.progressed_at + expiry),
        )

    def _signed_until(self) -> Timestamp:
        return _timestamp(datetime.now(UTC) + timedelta(seconds=self._signed_expiry_s))


async def _header(requests: AsyncIterator[Any], stall_timeout_s: float) -> Any:
    """Return the header that a stream must begin with."""
    try:
        async with asyncio.timeout(stall_timeout_s):
            request = await anext(aiter(requests), None)
    except TimeoutError:
        raise HeadraceError(
            Reason.TRANSFER_STALLED, f"no header arrived in {stall_timeout_s:g} seconds"
        ) from None
    if request is None or request.WhichOneof("message") != "header":
        raise HeadraceError(
            Reason.OPEN_EXPECTED, "the first message of an upload is its header", field="header"
        )
    return request.header


def _target(request: Any) -> Target:
    return Target(
        workspace_id=current_identity().workspace_id,
        run_id=fields.run_id(request.run_id),
        path=check_path(request.path),
        content_type=fields.name(
            request.content_type,
            field="content_type",
            default=CONTENT_TYPE_DEFAULT,
            characters_max=CONTENT_TYPE_CHARACTERS_MAX,
        ),
    )


def _upload_of(request: Any) -> tuple[int, UUID, UUID]:
    return (
        current_identity().workspace_id,
        fields.run_id(request.run_id),
        fields.hex_id(request.upload_id, field="upload_id"),
    )


def _path_of(request: Any) -> tuple[int, UUID, str]:
    if getattr(request, "digest", b"") and len(request.digest) != SHA256_BYTES:
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"digest must have {SHA256_BYTES} bytes",
            field="digest",
            value=len(request.digest),
            limit=SHA256_BYTES,
        )
    return (
        current_identity().workspace_id,
        fields.run_id(request.run_id),
        check_path(request.path),
    )


def _name(entry: Artifact | str) -> str:
    return entry if isinstance(entry, str) else entry.path


def _after(token: str, folder: str) -> str:
    """Return the path that a page token stands for: the last of the page before."""
    if token:
        try:
            check_path(token.removesuffix("/"))
        except HeadraceError:
            token = ""
        if not token or (folder and not token.startswith(f"{folder}/")):
            raise HeadraceError(
                Reason.PAGE_TOKEN_INVALID, "this page token is not ours", field="page_token"
            )
    return token


def _artifact(artifact: Artifact) -> pb.Artifact:
    return pb.Artifact(
        run_id=artifact.run_id.hex,
        path=artifact.path,
        size=artifact.size,
        digest=artifact.digest,
        content_type=artifact.content_type,
        part_size=part_size(artifact.size),
        part_sha256s=artifact.part_sha256s,
        create_time=_timestamp(artifact.created_at),
    )


def _timestamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
