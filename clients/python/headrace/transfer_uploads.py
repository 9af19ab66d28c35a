"""Uploads: small files in one stream, large ones in parts, several at a time."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from headrace import artifact_rules as rules
from headrace.artifact_errors import ArtifactError, FileChangedError
from headrace.direct import DirectError
from headrace.transfer_calls import (
    PART_TRIES,
    Progress,
    Tally,
    TransferCalls,
    each,
    no_progress,
)
from headrace.v1 import artifact_service_pb2 as pb

RESTARTS_MAX: Final = 8
"""Of one upload that the server keeps forgetting."""
_SIGN_BATCH: Final = 16

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What changes when a file is changed."""

    size: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> "Fingerprint":
        """Read it from an open file."""
        status = os.fstat(descriptor)
        return cls(
            size=status.st_size,
            modified_ns=status.st_mtime_ns,
            inode=status.st_ino,
        )


class Uploads(TransferCalls):
    """The uploading half of `Transfers`."""

    def upload(
        self,
        run_id: str,
        source: Path,
        path: str,
        *,
        content_type: str = "",
        progress: Progress = no_progress,
    ) -> pb.Artifact:
        """Store a file; return the artifact when it is visible.

        Raises:
            FileChangedError: it was changed meanwhile; nothing is visible.
            ArtifactError: the gateway refuses, or went on failing.
            OSError: the file cannot be read.
        """
        with source.open("rb") as file:
            before = Fingerprint.of(file.fileno())
            sha256s = rules.file_sha256s(file.fileno(), before.size, threads=self._parallel)
            if Fingerprint.of(file.fileno()) != before:
                raise _changed(source)
            work = _Upload(
                run_id=run_id,
                path=path,
                content_type=content_type,
                source=source,
                descriptor=file.fileno(),
                size=before.size,
                sha256s=sha256s,
                tally=Tally(progress),
            )
            if before.size <= rules.SINGLE_BYTES_MAX:
                return self._verified(work, 1, lambda: self._upload_small(work))
            return self._upload_parts(work)

    def upload_all(
        self,
        run_id: str,
        files: Iterable[tuple[Path, str]],
        *,
        content_type: str = "",
        progress: Progress = no_progress,
    ) -> list[pb.Artifact]:
        """Store several files: small ones in parallel, large ones one after another."""
        small: list[tuple[Path, str]] = []
        large: list[tuple[Path, str]] = []
        for source, path in files:
            is_small = source.stat().st_size <= rules.SINGLE_BYTES_MAX
            (small if is_small else large).append((source, path))

        def one(item: tuple[Path, str]) -> pb.Artifact:
            return self.upload(run_id, *item, content_type=content_type, progress=progress)

        with ThreadPoolExecutor(self._parallel) as executor:
            return [*executor.map(one, small), *map(one, large)]

    def _upload_small(self, work: "_Upload") -> pb.Artifact:
        header = pb.UploadArtifactHeader(
            run_id=work.run_id,
            path=work.path,
            size=work.size,
            digest=work.sha256s,
            content_type=work.content_type,
        )
        answer: pb.UploadArtifactResponse = self._stream(
            self.stub.UploadArtifact, pb.UploadArtifactRequest, header, work, part_number=1
        )
        return answer.artifact

    def _upload_parts(self, work: "_Upload") -> pb.Artifact:
        request = pb.BeginUploadRequest(
            run_id=work.run_id,
            path=work.path,
            size=work.size,
            part_sha256s=work.sha256s,
            content_type=work.content_type,
        )
        for _ in range(RESTARTS_MAX):
            answer: pb.BeginUploadResponse = self.call(self.stub.BeginUpload, request)
            if answer.HasField("artifact"):
                work.tally.set(work.size)
                return answer.artifact
            try:
                self._send_parts(work, answer.upload)
                return self._complete(work, answer.upload)
            except FileChangedError:
                raise
            except ArtifactError as error:
                work.tally.set(0)
                if error.reason == "DIGEST_MISMATCH":  # what went past the gateway was wrong
                    self._direct_works = False
                    _check_unchanged(work)
                elif error.reason != "UPLOAD_NOT_FOUND":
                    raise  # else it was completed (an answer was lost), or S3 forgot it
        raise ArtifactError(
            f"{work.path}: the upload was lost {RESTARTS_MAX} times", reason="UPLOAD_NOT_FOUND"
        )

    def _send_parts(self, work: "_Upload", upload: pb.Upload) -> None:
        stored = set(upload.stored_parts)
        work.tally.set(sum(rules.part_range(work.size, n)[1] for n in stored))
        missing = [n for n in range(1, upload.part_count + 1) if n not in stored]
        signed = _Signed(self, work, upload, missing)
        direct = upload.direct_available and self._goes_direct(work.size)

        def put(number: int) -> None:
            self._verified(work, number, lambda: self._put(work, upload, number, signed, direct))

        each(put, missing, self._parallel)

    def _complete(self, work: "_Upload", upload: pb.Upload) -> pb.Artifact:
        request = pb.CompleteUploadRequest(run_id=work.run_id, upload_id=upload.upload_id)
        answer: pb.CompleteUploadResponse = self.call(self.stub.CompleteUpload, request)
        return answer.artifact

    def _put(
        self, work: "_Upload", upload: pb.Upload, number: int, signed: "_Signed", direct: bool
    ) -> None:
        if direct and self._direct_works and self._put_directly(work, number, signed):
            return
        header = pb.UploadPartHeader(
            run_id=work.run_id, upload_id=upload.upload_id, part_number=number
        )
        self._stream(self.stub.UploadPart, pb.UploadPartRequest, header, work, part_number=number)

    def _stream(
        self, method: Any, message: Any, header: Any, work: "_Upload", *, part_number: int
    ) -> Any:
        """Send a header and the content of a part through the gateway; return the answer."""
        offset, length = rules.part_range(work.size, part_number)
        tally = Tally(work.tally.add)

        def messages() -> Iterator[Any]:
            tally.set(0)
            yield message(header=header)
            for chunk in rules.pieces(work.descriptor, offset, length, rules.CHUNK_BYTES):
                yield message(chunk=chunk)
                tally.add(len(chunk))

        try:
            answer = self._again(lambda: method(messages(), metadata=self.metadata))
        except ArtifactError:
            tally.set(0)
            raise
        tally.set(length)  # also when the gateway had it already
        return answer

    def _put_directly(self, work: "_Upload", number: int, signed: "_Signed") -> bool:
        """Send a part straight to S3; False when the gateway has to take it."""
        offset, length = rules.part_range(work.size, number)
        tally = Tally(work.tally.add)
        for _ in range(2):  # a connection that was kept open may have been closed meanwhile
            request = signed.take(number)
            if request is None:
                self._direct_works = False
                return False
            try:
                with open(work.descriptor, "rb", closefd=False) as file:
                    self._connections.put(
                        request.url,
                        request.headers,
                        file,
                        offset=offset,
                        length=length,
                        progress=tally.add,
                    )
            except DirectError as error:
                tally.set(0)
                if not error.connected:
                    self._direct_works = False
                    return False
            else:
                return True
        return False

    def _verified(self, work: "_Upload", number: int, send: Callable[[], _T]) -> _T:
        """Send until the bytes arrive as announced; tell a damaged wire from a changed file."""
        tried = 0
        while True:
            try:
                return send()
            except ArtifactError as error:
                if error.reason != "DIGEST_MISMATCH":
                    raise
                now = rules.part_sha256(work.descriptor, work.size, number)
                if now != work.sha256s[(number - 1) * 32 : number * 32]:
                    raise _changed(work.source) from error
                tried += 1
                if tried == PART_TRIES:
                    raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upload:
    """One file on its way."""

    run_id: str
    path: str
    content_type: str
    source: Path
    descriptor: int
    size: int
    sha256s: bytes
    tally: Tally


class _Signed:
    """Signed PUTs of the missing parts, fetched some at a time."""

    def __init__(
        self, transfers: TransferCalls, work: _Upload, upload: pb.Upload, missing: list[int]
    ) -> None:
        self._transfers = transfers
        self._work = work
        self._upload = upload
        self._missing = missing
        self._requests: dict[int, pb.SignedRequest] = {}
        self._lock = threading.Lock()

    def take(self, number: int) -> pb.SignedRequest | None:
        """Return a request for the part, signed not long ago; None when there are none."""
        with self._lock:
            if number not in self._requests:
                start = self._missing.index(number)
                try:
                    answer = self._transfers.call(
                        self._transfers.stub.SignUploadParts,
                        pb.SignUploadPartsRequest(
                            run_id=self._work.run_id,
                            upload_id=self._upload.upload_id,
                            part_numbers=self._missing[start : start + _SIGN_BATCH],
                        ),
                    )
                except ArtifactError as error:
                    if error.reason == "DIRECT_UNAVAILABLE":
                        return None
                    raise
                self._requests.update((item.part_number, item) for item in answer.requests)
            return self._requests.pop(number)


def _check_unchanged(work: _Upload) -> None:
    """Raise FileChangedError unless the file still has the digests that were announced."""
    if not rules.has_content(work.descriptor, work.size, work.sha256s):
        raise _changed(work.source)


def _changed(source: Path) -> FileChangedError:
    return FileChangedError(
        f"{source} was changed while it was being stored; nothing of it is visible",
        reason="DIGEST_MISMATCH",
    )
