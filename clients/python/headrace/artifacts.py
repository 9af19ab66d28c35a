"""The artifacts of one run: list, download, open, upload, verify, delete.

artifacts = headrace.Client().artifacts(run_id)
for entry in artifacts.list("checkpoints"):
    print(entry.path, entry.size)
artifacts.download("checkpoints/last.pt", "last.pt")
with artifacts.open("checkpoints/last.pt") as file:
    head = file.read(8)
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Final

from headrace import artifact_rules as rules
from headrace.artifact_errors import ArtifactError
from headrace.transfer_calls import no_progress
from headrace.transfers import Progress, Transfers
from headrace.v1 import artifact_service_pb2 as pb

_BUFFER_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file of a run, or a folder (`is_folder`: no size, digest or time).

    Attributes:
        path: within the run.
        size: bytes.
        digest: the SHA-256 tree in hex; for files of up to 16 MiB, what
            `sha256sum` prints.
        content_type: as given by whoever stored it.
        created_at: when this content became visible at this path.
    """

    path: str
    size: int = 0
    digest: str = ""
    content_type: str = ""
    created_at: datetime | None = None
    is_folder: bool = False


def artifact_of(message: pb.Artifact) -> Artifact:
    """Return an artifact as users see it."""
    return Artifact(
        path=message.path,
        size=message.size,
        digest=message.digest.hex(),
        content_type=message.content_type,
        created_at=message.create_time.ToDatetime(UTC),
    )


class Artifacts:
    """The artifacts of one run; see the module. Methods raise ArtifactError."""

    def __init__(self, transfers: Transfers, run_id: str) -> None:
        self._transfers = transfers
        self._run_id = run_id

    def list(self, folder: str = "", *, recursive: bool = False) -> Iterator[Artifact]:
        """Yield what stands in a folder, by path; with `recursive` all files below it."""
        token = ""
        while True:
            answer = self._transfers.call(
                self._transfers.stub.ListArtifacts,
                pb.ListArtifactsRequest(
                    run_id=self._run_id, folder=folder, recursive=recursive, page_token=token
                ),
            )
            for entry in answer.entries:
                if entry.WhichOneof("entry") == "folder":
                    yield Artifact(path=entry.folder, is_folder=True)
                else:
                    yield artifact_of(entry.artifact)
            token = answer.next_page_token
            if not token:
                return

    def stat(self, path: str) -> Artifact:
        """Return what is known of one artifact."""
        return artifact_of(self._transfers.stat(self._run_id, path))

    def upload(
        self,
        source: str | PathLike[str],
        name: str | None = None,
        *,
        content_type: str = "",
        progress: Progress | None = None,
    ) -> Sequence[Artifact]:
        """Store a file, or every file below a directory, now; return when all are visible.

        Args:
            source: the file or directory.
            name: the artifact's path, or the folder of the directory's files;
                None: the source's own name; "": a directory's files at the top.
            content_type: of every file; empty: the gateway's default.
            progress: see `transfers.Progress`.
        """
        origin = Path(source)
        found = rules.walk(origin, rules.name_of(origin) if name is None else name)
        for _, path in found:
            if fault := rules.path_fault(path):
                raise ArtifactError(
                    f"artifact path {path!r} {fault}", reason="ARTIFACT_PATH_INVALID"
                )
        stored = self._transfers.upload_all(
            self._run_id, found, content_type=content_type, progress=progress or no_progress
        )
        return [artifact_of(message) for message in stored]

    def download(
        self,
        path: str,
        target: str | PathLike[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Path:
        """Write an artifact, or a folder with all below it, to `target`; return it.

        Args:
            path: the artifact or folder; "" is the whole run.
            target: the file or directory to make; None: the last part of `path`
                (or the run's id) in the working directory. An artifact goes
                into a directory that is there under its own name. A file
                appears when it is whole and verified; one that is there
                already with the same content is left as it is.
            progress: see `transfers.Progress`.
        """
        name = path.rpartition("/")[2] or self._run_id
        goal = Path(name if target is None else target)
        tell = progress or no_progress
        try:
            if path:
                file = goal / name if target is not None and goal.is_dir() else goal
                self._transfers.download(self._run_id, path, file, progress=tell)
                return file
        except ArtifactError as error:
            if error.reason != "ARTIFACT_NOT_FOUND":
                raise
        entries = list(self.list(path, recursive=True))
        if not entries:
            raise ArtifactError(
                f"the run has no artifact or folder {path!r}", reason="ARTIFACT_NOT_FOUND"
            )
        start = len(path) + 1 if path else 0

        def one(entry: Artifact) -> None:
            below = _below(goal, entry.path[start:])
            self._transfers.download(self._run_id, entry.path, below, progress=tell)

        small = [entry for entry in entries if entry.size <= rules.SINGLE_BYTES_MAX]
        with ThreadPoolExecutor(4) as executor:
            list(executor.map(one, small))
        for entry in entries:
            if entry.size > rules.SINGLE_BYTES_MAX:
                one(entry)
        return goal

    def open(self, path: str) -> io.BufferedReader:
        """Open an artifact for reading: seekable, reads only the ranges asked for.

        All reads see the content that was there when it was opened; if it is
        replaced, they raise ArtifactError (ARTIFACT_CHANGED). Ranges are not
        verified against the digest, which holds for whole parts: `download`
        verifies.
        """
        message = self._transfers.stat(self._run_id, path)
        return io.BufferedReader(_Reader(self._transfers, message), _BUFFER_BYTES)

    def read(self, path: str) -> bytes:
        """Return an artifact's content, verified."""
        message = self._transfers.stat(self._run_id, path)
        content = bytearray(message.size)

        def write(piece: Any, offset: int) -> None:
            content[offset : offset + len(piece)] = piece

        self._transfers.read_parts(message, write)
        return bytes(content)

    def verify(self, path: str, *, progress: Progress | None = None) -> Artifact:
        """Read all of an artifact and check every byte against its digest."""
        message = self._transfers.stat(self._run_id, path)
        self._transfers.read_parts(
            message, lambda _piece, _at: None, progress=progress or no_progress
        )
        return artifact_of(message)

    def matches(self, path: str, file: str | PathLike[str]) -> bool:
        """Whether a local file has the artifact's content; only the file is read."""
        message = self._transfers.stat(self._run_id, path)
        with Path(file).open("rb") as opened:
            return rules.has_content(opened.fileno(), message.size, message.part_sha256s)

    def delete(self, path: str, *, recursive: bool = False) -> int:
        """Delete an artifact, or a folder with all below it; return how many."""
        answer = self._transfers.call(
            self._transfers.stub.DeleteArtifact,
            pb.DeleteArtifactRequest(run_id=self._run_id, path=path, recursive=recursive),
        )
        count: int = answer.deleted_count
        return count


class _Reader(io.RawIOBase):
    """Range reads of one artifact."""

    def __init__(self, transfers: Transfers, message: pb.Artifact) -> None:
        self._transfers = transfers
        self._message = message
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._message.size}
        position = base[whence] + offset
        if position < 0:
            raise ValueError("negative seek position")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._position
        length = max(0, min(len(view), self._message.size - start))

        def write(piece: Any, offset: int) -> None:
            view[offset - start : offset - start + len(piece)] = piece

        self._transfers.read_range(self._message, start, length, write=write)
        self._position += length
        return length


def _below(directory: Path, relative: str) -> Path:
    """Return a path inside a directory; the gateway's word alone is not taken for it."""
    if fault := rules.path_fault(relative):
        raise ArtifactError(
            f"the gateway lists the path {relative!r}, which {fault}",
            reason="ARTIFACT_PATH_INVALID",
        )
    return directory.joinpath(*relative.split("/"))
