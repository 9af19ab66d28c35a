"""Downloads: parts in parallel, each verified; a file appears when it is whole."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import grpc

from headrace import artifact_rules as rules
from headrace.artifact_errors import ArtifactError, artifact_error
from headrace.direct import DirectError
from headrace.transfer_calls import (
    DIRECT_BYTES_MIN,
    PART_TRIES,
    Progress,
    TransferCalls,
    Waits,
    each,
    no_progress,
)
from headrace.v1 import artifact_service_pb2 as pb


class Downloads(TransferCalls):
    """The downloading half of `Transfers`."""

    def stat(self, run_id: str, path: str) -> pb.Artifact:
        """Return what is known of an artifact, part digests included."""
        request = pb.StatArtifactRequest(run_id=run_id, path=path)
        answer: pb.StatArtifactResponse = self.call(self.stub.StatArtifact, request)
        return answer.artifact

    def download(
        self, run_id: str, path: str, target: Path, *, progress: Progress = no_progress
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
        progress: Progress = no_progress,
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

        each(get, numbers, self._parallel)

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
        waits = Waits(self._patience_s)
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
