"""Downloads: parts in parallel, each verified; a file appears when it is whole."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from headrace import artifact_rules as rules
from headrace.artifact_errors import ArtifactError, artifact_error
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
        Several processes may download to one target: one does, the others wait.

        Raises:
            ArtifactError: DIGEST_MISMATCH when what S3 has is damaged, and
                whatever the gateway answers.
            OSError: the target cannot be written.
        """
        artifact = self.stat(run_id, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        half = _half(target, artifact)
        with _claimed(half) as descriptor:
            if _holds(target, artifact):  # whoever claimed it before us was quick
                half.unlink()
                progress(artifact.size)
                return artifact
            _reserve(descriptor, artifact.size)

            def write(piece: bytes | memoryview, offset: int) -> None:
                while piece:
                    written = os.pwrite(descriptor, piece, offset)
                    piece, offset = piece[written:], offset + written

            there = _parts_there(descriptor, artifact)
            progress(sum(rules.part_range(artifact.size, n)[1] for n in there))
            self.read_parts(artifact, write, skip=there, progress=progress)
            os.fsync(descriptor)
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
            tally = Tally(progress)
            for _ in range(PART_TRIES):
                if self._get(artifact, number, signed, write, tally) == _sha256(artifact, number):
                    return
                tally.set(0)
                signed.clear()  # through the gateway, which sees what S3 says
            raise ArtifactError(
                f"{artifact.path}: part {number} does not have its SHA-256: what is stored is"
                " damaged",
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
        position, end = offset, offset + length

        def read_on() -> None:
            nonlocal position
            began = position
            request = pb.DownloadArtifactRequest(
                run_id=artifact.run_id,
                path=artifact.path,
                offset=position,
                length=end - position,
                digest=artifact.digest,
            )
            stream = self.stub.DownloadArtifact(request, metadata=self.metadata)
            try:
                for message in stream:
                    if message.chunk:
                        write(message.chunk, position)
                        position += len(message.chunk)
            except grpc.RpcError as error:
                if position == began or not artifact_error(error).retry:
                    raise
                # Some bytes came: patience begins anew.
            finally:
                stream.cancel()

        while position < end:
            self._again(read_on)

    def _get(
        self,
        artifact: pb.Artifact,
        number: int,
        signed: list[str],
        write: Callable[[bytes | memoryview, int], None],
        tally: Tally,
    ) -> bytes:
        """Read a part, past the gateway if `signed` has a URL; return its SHA-256."""
        offset, length = rules.part_range(artifact.size, number)
        url = next(iter(signed), "")
        if url and self._direct_works and length:
            try:
                return self._connections.get(
                    url, offset=offset, length=length, write=write, progress=tally.add
                )
            except DirectError as error:
                tally.set(0)
                if not error.connected:
                    self._direct_works = False
        digest = hashlib.sha256()

        def take(piece: bytes | memoryview, at: int) -> None:
            digest.update(piece)
            write(piece, at)
            tally.add(len(piece))

        self.read_range(artifact, offset, length, write=take)
        return digest.digest()

    def _sign_download(self, artifact: pb.Artifact) -> list[str]:
        if not self._goes_direct(artifact.size):
            return []
        request = pb.SignDownloadRequest(run_id=artifact.run_id, path=artifact.path)
        try:
            answer = self.call(self.stub.SignDownload, request)
        except ArtifactError as error:
            if error.reason == "DIRECT_UNAVAILABLE":
                return []
            raise
        return [answer.request.url] if answer.artifact.digest == artifact.digest else []


def _half(target: Path, artifact: pb.Artifact) -> Path:
    """Where an unfinished download lies: beside its target, one name for each content."""
    mark = hashlib.sha256(target.name.encode() + artifact.digest).hexdigest()[:16]
    return target.with_name(f".{target.name[:50]}.{mark}.part")  # names have at most 255 bytes


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[int]:
    """Yield a descriptor of a file that no other process has claimed; waits for it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                yield descriptor
                return
            # While we waited, its owner renamed or deleted it.
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sha256(artifact: pb.Artifact, number: int) -> bytes:
    return artifact.part_sha256s[(number - 1) * rules.SHA256_BYTES : number * rules.SHA256_BYTES]


def _holds(path: Path, artifact: pb.Artifact) -> bool:
    """Whether a file has an artifact's content."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return rules.has_content(file.fileno(), artifact.size, artifact.part_sha256s)


def _parts_there(descriptor: int, artifact: pb.Artifact) -> set[int]:
    """Return the numbers of the parts that a half-made download has."""
    return {
        number
        for number in range(1, rules.part_count(artifact.size) + 1)
        if _has_data(descriptor, *rules.part_range(artifact.size, number))
        and rules.part_sha256(descriptor, artifact.size, number) == _sha256(artifact, number)
    }


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
