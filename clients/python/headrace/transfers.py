"""Moves files to and from a gateway: in parts, in parallel, verified, resumed after anything.

Used by `Artifacts`, the uploader process and the command line; blocks, and is
thread-safe. What is interrupted goes on where it stopped, in another process
too: the gateway knows which parts it has, and a half-made download lies beside
its target until it is whole. A file appears under its name, at either end,
only when every byte of it was verified.
"""

import contextlib
import errno
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import grpc

from headrace import artifact_rules as rules
from headrace.artifact_errors import ArtifactError, FileChangedError, artifact_error
from headrace.direct import DirectConnections, DirectError
from headrace.v1 import artifact_service_pb2 as pb
from headrace.v1.artifact_service_pb2_grpc import ArtifactServiceStub

Direct = Literal["auto", "always", "never"]
Progress = Callable[[int], None]
"""Is told how many more bytes are there; a negative number takes some back."""

DIRECT_BYTES_MIN: Final = 64 * 1024 * 1024
"""Smaller files are not worth another connection."""
PART_TRIES: Final = 4
"""Of one part whose bytes arrive damaged, before giving up."""
RESTARTS_MAX: Final = 8
"""Of one upload that the server keeps forgetting."""
_BACKOFF_MAX_S: Final = 10.0
_SIGN_BATCH: Final = 16

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What changes when a file is changed."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> "Fingerprint":
        """Read it from an open file."""
        status = os.fstat(descriptor)
        return cls(
            size=status.st_size,
            modified_ns=status.st_mtime_ns,
            # Links and renames move it too; where only they happened, hashing decides.
            changed_ns=status.st_mtime_ns,
            inode=status.st_ino,
        )


def _nothing(_: int) -> None:
    pass


class Transfers:
    """Uploads and downloads through one channel. Close it, or use it as a context manager."""

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        token: str = "",
        parallel: int = 4,
        direct: Direct = "auto",
        patience_s: float = 120.0,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            channel: to the gateway; stays the caller's.
            token: bearer token; empty: none.
            parallel: parts, or small files, that move at once.
            direct: whether bytes may bypass the gateway. `auto`: those of
                files of 64 MiB and more, while the S3 server can be reached.
            patience_s: how long failures that may pass are tried again
                without any success between them.
        """
        self.stub = ArtifactServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._parallel = parallel
        self._direct = direct
        self._direct_works = direct != "never"
        self._connections = DirectConnections()
        self._patience_s = patience_s

    def __enter__(self) -> "Transfers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to S3."""
        self._connections.close()

    # ---- uploading ----------------------------------------------------------

    def upload(
        self,
        run_id: str,
        source: Path,
        path: str,
        *,
        content_type: str = "",
        progress: Progress = _nothing,
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
                progress=progress,
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
        progress: Progress = _nothing,
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
        sent = 0

        def messages() -> Iterator[pb.UploadArtifactRequest]:
            nonlocal sent
            yield pb.UploadArtifactRequest(header=header)
            for chunk in rules.pieces(work.descriptor, 0, work.size, rules.CHUNK_BYTES):
                yield pb.UploadArtifactRequest(chunk=chunk)
                sent += len(chunk)
                work.progress(len(chunk))

        try:
            answer: pb.UploadArtifactResponse = self.call(
                self.stub.UploadArtifact, messages(), fresh=messages
            )
        except ArtifactError:
            work.progress(-sent)
            raise
        work.progress(work.size - sent)
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
                work.arrived(work.size)
                return answer.artifact
            try:
                return self._finish_parts(work, answer.upload)
            except ArtifactError as error:
                # Completed by a call whose answer was lost, or forgotten by S3,
                # or (DIGEST_MISMATCH at the end) damaged on the way past the gateway.
                if error.reason == "DIGEST_MISMATCH" and isinstance(error, FileChangedError):
                    raise
                if error.reason not in {"UPLOAD_NOT_FOUND", "DIGEST_MISMATCH"}:
                    raise
        raise ArtifactError(f"{work.path}: the server forgot the upload {RESTARTS_MAX} times")

    def _finish_parts(self, work: "_Upload", upload: pb.Upload) -> pb.Artifact:
        stored = set(upload.stored_parts)
        work.arrived(sum(rules.part_range(work.size, n)[1] for n in stored))
        missing = [n for n in range(1, upload.part_count + 1) if n not in stored]
        signed = _Signed(self, work, upload, missing)
        direct = upload.direct_available and (
            self._direct == "always" or work.size >= DIRECT_BYTES_MIN
        )

        def put(number: int) -> None:
            self._verified(work, number, lambda: self._put(work, upload, number, signed, direct))

        _each(put, missing, self._parallel)
        answer: pb.CompleteUploadResponse = self.call(
            self.stub.CompleteUpload,
            pb.CompleteUploadRequest(run_id=work.run_id, upload_id=upload.upload_id),
        )
        return answer.artifact

    def _put(
        self, work: "_Upload", upload: pb.Upload, number: int, signed: "_Signed", direct: bool
    ) -> None:
        if direct and self._direct_works and self._put_directly(work, number, signed):
            return
        offset, length = rules.part_range(work.size, number)
        header = pb.UploadPartHeader(
            run_id=work.run_id, upload_id=upload.upload_id, part_number=number
        )
        sent = 0

        def messages() -> Iterator[pb.UploadPartRequest]:
            nonlocal sent
            work.progress(-sent)
            sent = 0
            yield pb.UploadPartRequest(header=header)
            for chunk in rules.pieces(work.descriptor, offset, length, rules.CHUNK_BYTES):
                yield pb.UploadPartRequest(chunk=chunk)
                sent += len(chunk)
                work.progress(len(chunk))

        try:
            self.call(self.stub.UploadPart, messages(), fresh=messages)
        except ArtifactError:
            work.progress(-sent)
            raise
        work.progress(length - sent)  # another client had sent it meanwhile

    def _put_directly(self, work: "_Upload", number: int, signed: "_Signed") -> bool:
        """Send a part straight to S3; False when the gateway has to take it."""
        offset, length = rules.part_range(work.size, number)
        for _ in range(2):  # a connection that was kept open may have been closed meanwhile
            request = signed.take(number)
            if request is None:
                self._direct_works = False
                return False
            sent = 0

            def count(more: int) -> None:
                nonlocal sent
                sent += more
                work.progress(more)

            try:
                with open(work.descriptor, "rb", closefd=False) as file:
                    self._connections.put(
                        request.url,
                        request.headers,
                        file,
                        offset=offset,
                        length=length,
                        progress=count,
                    )
            except DirectError as error:
                work.progress(-sent)
                if not error.connected:
                    self._direct_works = False
                    return False
            else:
                return True
        return False

    def _verified(self, work: "_Upload", number: int, send: Callable[[], _T]) -> _T:
        """Send until the bytes arrive as announced; tell a damaged wire from a changed file."""
        for tried in range(1, PART_TRIES + 1):
            try:
                return send()
            except ArtifactError as error:
                if error.reason != "DIGEST_MISMATCH":
                    raise
                now = rules.part_sha256(work.descriptor, work.size, number)
                if now != work.sha256s[(number - 1) * 32 : number * 32]:
                    raise _changed(work.source) from error
                if tried == PART_TRIES:
                    raise
        raise AssertionError("unreachable")

    # ---- downloading --------------------------------------------------------

    def stat(self, run_id: str, path: str) -> pb.Artifact:
        """Return what is known of an artifact, part digests included."""
        request = pb.StatArtifactRequest(run_id=run_id, path=path)
        answer: pb.StatArtifactResponse = self.call(self.stub.StatArtifact, request)
        return answer.artifact

    def download(
        self, run_id: str, path: str, target: Path, *, progress: Progress = _nothing
    ) -> pb.Artifact:
        """Write an artifact to `target`, which appears whole and verified, or not at all.

        What is there of an interrupted download of the same content is used.

        Raises:
            ArtifactError: DIGEST_MISMATCH when what S3 has is damaged, and
                whatever the gateway answers.
            OSError: the target cannot be written.
        """
        artifact = self.stat(run_id, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f".{target.name}.{artifact.digest.hex()[:16]}.part")
        descriptor = os.open(half, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _reserve(descriptor, artifact.size)

            def write(piece: bytes | memoryview, offset: int) -> None:
                while piece:
                    written = os.pwrite(descriptor, piece, offset)
                    piece, offset = piece[written:], offset + written

            there = self._parts_there(descriptor, artifact)
            progress(sum(rules.part_range(artifact.size, n)[1] for n in there))
            self.read_parts(artifact, write, skip=there, progress=progress)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        half.replace(target)
        return artifact

    def read_parts(
        self,
        artifact: pb.Artifact,
        write: Callable[[bytes | memoryview, int], None],
        *,
        skip: set[int] | None = None,
        progress: Progress = _nothing,
    ) -> None:
        """Read every part but those of `skip` in parallel, verify each, and pass it on.

        Args:
            artifact: with its part digests.
            write: is called with bytes and their offset, in any order; a part
                that arrived damaged is passed again.
            skip: numbers of parts that are there.
            progress: see `Progress`.
        """
        count = rules.part_count(artifact.size)
        numbers = [n for n in range(1, count + 1) if n not in (skip or ())]
        signed = self._sign_download(artifact)

        def get(number: int) -> None:
            for tried in range(1, PART_TRIES + 1):
                digest = self._get(artifact, number, signed, write, progress)
                if digest == artifact.part_sha256s[(number - 1) * 32 : number * 32]:
                    return
                progress(-rules.part_range(artifact.size, number)[1])
                signed.clear()  # through the gateway, which sees what S3 says
                if tried == PART_TRIES:
                    raise ArtifactError(
                        f"{artifact.path}: part {number} does not have its SHA-256: what is"
                        " stored is damaged",
                        reason="DIGEST_MISMATCH",
                    )

        _each(get, numbers, self._parallel)

    def read_range(
        self,
        artifact: pb.Artifact,
        offset: int,
        length: int,
        *,
        write: Callable[[bytes | memoryview, int], None],
    ) -> None:
        """Read bytes through the gateway, of exactly this content, going on after failures."""
        end = offset + length
        waits = _Waits(self._patience_s)
        while offset < end:
            request = pb.DownloadArtifactRequest(
                run_id=artifact.run_id,
                path=artifact.path,
                offset=offset,
                length=end - offset,
                digest=artifact.digest,
            )
            stream = self.stub.DownloadArtifact(request, metadata=self.metadata)
            try:
                for message in stream:
                    chunk = message.chunk
                    if chunk:
                        write(chunk, offset)
                        offset += len(chunk)
                        waits.reset()
            except grpc.RpcError as error:
                waits.next(artifact_error(error))
            finally:
                stream.cancel()

    def _get(
        self,
        artifact: pb.Artifact,
        number: int,
        signed: list[str],
        write: Callable[[bytes | memoryview, int], None],
        progress: Progress,
    ) -> bytes:
        offset, length = rules.part_range(artifact.size, number)
        if signed and self._direct_works and length:
            got = 0

            def count(more: int) -> None:
                nonlocal got
                got += more
                progress(more)

            try:
                return self._connections.get(
                    signed[0], offset=offset, length=length, write=write, progress=count
                )
            except DirectError as error:
                progress(-got)
                if not error.connected:
                    self._direct_works = False
        digest = hashlib.sha256()

        def take(piece: bytes | memoryview, at: int) -> None:
            digest.update(piece)
            write(piece, at)
            progress(len(piece))

        self.read_range(artifact, offset, length, write=take)
        return digest.digest()

    def _sign_download(self, artifact: pb.Artifact) -> list[str]:
        wanted = self._direct == "always" or (
            self._direct == "auto" and artifact.size >= DIRECT_BYTES_MIN
        )
        if not wanted or not self._direct_works:
            return []
        request = pb.SignDownloadRequest(run_id=artifact.run_id, path=artifact.path)
        try:
            answer = self.call(self.stub.SignDownload, request)
        except ArtifactError as error:
            if error.reason == "DIRECT_UNAVAILABLE":
                return []
            raise
        return [answer.request.url] if answer.artifact.digest == artifact.digest else []

    @staticmethod
    def _parts_there(descriptor: int, artifact: pb.Artifact) -> set[int]:
        there = set()
        for number in range(1, rules.part_count(artifact.size) + 1):
            offset, length = rules.part_range(artifact.size, number)
            if not _has_data(descriptor, offset, length):
                continue
            digest = rules.part_sha256(descriptor, artifact.size, number)
            if digest == artifact.part_sha256s[(number - 1) * 32 : number * 32]:
                there.add(number)
        return there

    # ---- calling ------------------------------------------------------------

    def call(self, method: Any, request: Any, *, fresh: Callable[[], Any] | None = None) -> Any:
        """Call, again and again while failures may pass; `fresh` makes the request anew.

        Raises:
            ArtifactError: the gateway refuses, or patience ended.
        """
        waits = _Waits(self._patience_s)
        while True:
            try:
                return method(request, metadata=self.metadata)
            except grpc.RpcError as error:
                waits.next(artifact_error(error))
                if fresh is not None:
                    request = fresh()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upload:
    """One file on its way, and how much of it has arrived."""

    run_id: str
    path: str
    content_type: str
    source: Path
    descriptor: int
    size: int
    sha256s: bytes
    progress: Progress

    def arrived(self, size: int) -> None:
        """Count bytes that need not be sent."""
        if size:
            self.progress(size)


class _Signed:
    """Signed PUTs of the missing parts, fetched some at a time."""

    def __init__(
        self, transfers: Transfers, work: _Upload, upload: pb.Upload, missing: list[int]
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


class _Waits:
    """Jittered waits between tries, for as long as patience lasts without success."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.reset()

    def reset(self) -> None:
        """Note a success."""
        self._deadline = time.monotonic() + self._patience_s
        self._wait_s = 0.1

    def next(self, error: ArtifactError) -> None:
        """Wait, or raise the error when waiting is no use (any more)."""
        if not error.retry or time.monotonic() >= self._deadline:
            raise error
        time.sleep(max(error.retry_after_s, self._wait_s) * random.uniform(0.5, 1.0))
        self._wait_s = min(2 * self._wait_s, _BACKOFF_MAX_S)


def _each(work: Callable[[int], None], numbers: list[int], parallel: int) -> None:
    """Do the work for every number, some at a time; the first failure stops the rest."""
    if len(numbers) <= 1:
        for number in numbers:
            work(number)
        return
    with ThreadPoolExecutor(min(parallel, len(numbers))) as executor:
        futures: list[Future[None]] = [executor.submit(work, number) for number in numbers]
        try:
            for future in futures:
                future.result()
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _reserve(descriptor: int, size: int) -> None:
    """Make the file this large; a disk that is too full says so now."""
    if os.fstat(descriptor).st_size != size:
        os.ftruncate(descriptor, size)
    status = os.fstatvfs(descriptor)
    missing = size - os.fstat(descriptor).st_blocks * 512
    if missing > status.f_bavail * status.f_frsize:
        raise OSError(errno.ENOSPC, f"{missing} bytes do not fit the disk")


def _has_data(descriptor: int, offset: int, length: int) -> bool:
    """Whether a range is more than a hole (which need not be hashed)."""
    if not length or not hasattr(os, "SEEK_DATA"):
        return True
    with contextlib.suppress(OSError):  # ENXIO: no data up to the end
        return os.lseek(descriptor, offset, os.SEEK_DATA) < offset + length
    return False


def _changed(source: Path) -> FileChangedError:
    return FileChangedError(
        f"{source} was changed while it was being stored; nothing of it is visible",
        reason="DIGEST_MISMATCH",
    )
