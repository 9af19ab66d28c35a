"""The manifest of artifacts in PostgreSQL: what is visible, shared, and under way.

An artifact appears in the transaction that ends its upload (`publish`) or that
adds a reference to content which is there already (`adopt`); there is no other
way. What such a transaction makes useless (a replaced blob, a duplicate) is
named in `blob_deletions` by the same transaction, so nothing is forgotten and
nothing is deleted that somebody still refers to. Object keys are never reused.

Every transaction that changes a run's artifacts locks the run's row first.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from gateway.domain.artifacts import Content
from gateway.domain.errors import HeadraceError, Reason
from gateway.store.connections import Database
from gateway.store.queries import load

_SQL: Final = load("artifacts")
_AFTER_SLASH: Final = "0"  # the character after `/`: the end of all paths below a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A visible artifact. `part_sha256s` is empty in lists; `size` is in bytes."""

    run_id: UUID
    path: str
    size: int
    digest: bytes
    content_type: str
    created_at: datetime
    part_sha256s: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArtifact:
    """A visible artifact and the S3 key of its content."""

    artifact: Artifact
    object_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where content is to appear."""

    workspace_id: int
    run_id: UUID
    path: str
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload under way; `s3_upload_id` is None until S3 has named it."""

    run_id: UUID
    upload_id: UUID
    path: str
    content_type: str
    content: Content
    object_key: str
    s3_upload_id: str | None
    progressed_at: datetime
    etags: Mapping[int, str]  # of the parts that came through a gateway


class ArtifactStore:
    """Reads and changes the manifest."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def namespace(self) -> str:
        """Return what the keys of this database's objects begin with."""
        async with self._database.query() as connection:
            namespace: str = await connection.fetchval(_SQL["get_namespace"])
        return namespace

    async def check_run(self, workspace_id: int, run_id: UUID) -> None:
        """Raise RUN_NOT_FOUND or RUN_PURGED unless the run can have artifacts."""
        async with self._database.query() as connection:
            row = await connection.fetchrow(_SQL["get_run"], run_id, workspace_id)
        _check_run(row, run_id)

    # ---- uploading ----------------------------------------------------------

    async def adopt(self, target: Target, *, size: int, digest: bytes) -> Artifact | None:
        """Make content that the experiment has already visible at the target.

        Returns:
            The artifact; None when the experiment lacks the content.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED, ARTIFACT_PATH_CONFLICT.
        """
        async with self._database.query() as connection, connection.transaction():
            experiment_id = await self._lock_run(connection, target.workspace_id, target.run_id)
            await self._check_path(connection, target.run_id, target.path)
            part_sha256s = await connection.fetchval(
                _SQL["reference_blob"], experiment_id, digest, size
            )
            if part_sha256s is None:
                return None
            return await self._put(
                connection, target, experiment_id, Content(size=size, part_sha256s=part_sha256s)
            )

    async def begin(
        self, target: Target, content: Content, *, upload_id: UUID, object_key: str, resumable: bool
    ) -> Upload:
        """Record an upload before its first byte, or return the one with the same content.

        Args:
            target: where the content is to appear.
            content: what it will be.
            upload_id: of the upload, if it is new.
            object_key: never used before.
            resumable: whether equal requests share it.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED, ARTIFACT_PATH_CONFLICT.
        """
        async with self._database.query() as connection, connection.transaction():
            experiment_id = await self._lock_run(connection, target.workspace_id, target.run_id)
            await self._check_path(connection, target.run_id, target.path)
            inserted = await connection.fetchval(
                _SQL["insert_upload"],
                target.run_id,
                upload_id,
                target.path,
                experiment_id,
                content.digest,
                content.size,
                target.content_type,
                content.part_sha256s,
                object_key,
                resumable,
            )
            if inserted is not None:
                row = await connection.fetchrow(_SQL["get_upload"], target.run_id, upload_id)
            else:
                row = await connection.fetchrow(
                    _SQL["find_upload"],
                    target.run_id,
                    target.path,
                    content.digest,
                    content.size,
                    target.content_type,
                )
                await connection.execute(_SQL["touch_upload"], target.run_id, row["upload_id"])
            return await _upload(connection, row)

    async def name(self, upload: Upload, s3_upload_id: str) -> str:
        """Record the id that S3 gave the upload; return the id that counts.

        Raises:
            HeadraceError: UPLOAD_NOT_FOUND.
        """
        async with self._database.query() as connection:
            named: str | None = await connection.fetchval(
                _SQL["name_upload"], upload.run_id, upload.upload_id, s3_upload_id
            )
        if named is None:
            raise upload_not_found(upload.upload_id)
        return named

    async def get_upload(self, workspace_id: int, run_id: UUID, upload_id: UUID) -> Upload:
        """Return an upload with the parts recorded for it.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED, UPLOAD_NOT_FOUND.
        """
        async with self._database.query() as connection:
            _check_run(await connection.fetchrow(_SQL["get_run"], run_id, workspace_id), run_id)
            row = await connection.fetchrow(_SQL["get_upload"], run_id, upload_id)
            if row is None:
                raise upload_not_found(upload_id)
            return await _upload(connection, row)

    async def record_part(self, upload: Upload, part_number: int, etag: str) -> None:
        """Record that S3 has a part whose content was verified.

        Raises:
            HeadraceError: UPLOAD_NOT_FOUND, it ended meanwhile.
        """
        async with self._database.query() as connection, connection.transaction():
            touched = await connection.fetchval(
                _SQL["touch_upload"], upload.run_id, upload.upload_id
            )
            if touched is None:
                raise upload_not_found(upload.upload_id)
            await connection.execute(
                _SQL["put_part"], upload.run_id, upload.upload_id, part_number, etag
            )

    async def touch(self, upload: Upload) -> None:
        """Note that the upload goes on.

        Raises:
            HeadraceError: UPLOAD_NOT_FOUND.
        """
        async with self._database.query() as connection:
            touched = await connection.fetchval(
                _SQL["touch_upload"], upload.run_id, upload.upload_id
            )
        if touched is None:
            raise upload_not_found(upload.upload_id)

    async def publish(self, workspace_id: int, upload: Upload) -> Artifact:
        """End an upload whose object is whole and verified: its artifact becomes visible.

        Raises:
            HeadraceError: UPLOAD_NOT_FOUND when it ended meanwhile; its object
                is then somebody else's to delete. RUN_NOT_FOUND, RUN_PURGED,
                ARTIFACT_PATH_CONFLICT.
        """
        target = Target(
            workspace_id=workspace_id,
            run_id=upload.run_id,
            path=upload.path,
            content_type=upload.content_type,
        )
        async with self._database.query() as connection, connection.transaction():
            experiment_id = await self._lock_run(connection, workspace_id, upload.run_id)
            await self._check_path(connection, upload.run_id, upload.path)
            await self._end_upload(connection, upload.run_id, upload.upload_id)
            stored_key = await connection.fetchval(
                _SQL["insert_blob"],
                experiment_id,
                upload.content.digest,
                upload.content.size,
                upload.object_key,
                upload.content.part_sha256s,
            )
            if stored_key != upload.object_key:  # somebody stored the same content first
                await connection.execute(_SQL["put_deletion"], upload.object_key, None)
            return await self._put(connection, target, experiment_id, upload.content)

    async def discard_upload(self, run_id: UUID, upload_id: UUID) -> bool:
        """End an upload without an artifact; its object and parts will be deleted.

        Returns:
            False when there was no such upload.
        """
        async with self._database.query() as connection, connection.transaction():
            try:
                row = await self._end_upload(connection, run_id, upload_id)
            except HeadraceError:
                return False
            await connection.execute(_SQL["put_deletion"], row["object_key"], row["s3_upload_id"])
            return True

    # ---- reading ------------------------------------------------------------

    async def get(self, workspace_id: int, run_id: UUID, path: str) -> StoredArtifact:
        """Return an artifact, part digests included.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED, ARTIFACT_NOT_FOUND.
        """
        async with (
            self._database.query() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            _check_run(await connection.fetchrow(_SQL["get_run"], run_id, workspace_id), run_id)
            row = await connection.fetchrow(_SQL["get_artifact"], run_id, path)
            if row is None:
                raise artifact_not_found(path)
            blob = await connection.fetchrow(
                _SQL["get_blob"], row["experiment_id"], row["digest"], row["size"]
            )
        if blob is None:
            raise HeadraceError(Reason.INTERNAL, f"artifact {path!r} has lost its content")
        return StoredArtifact(
            artifact=_artifact(run_id, row, blob["part_sha256s"]), object_key=blob["object_key"]
        )

    async def list_artifacts(
        self,
        workspace_id: int,
        run_id: UUID,
        *,
        folder: str,
        recursive: bool,
        after: str,
        count_max: int,
    ) -> list[Artifact | str]:
        """Return artifacts, and folders as text ending in `/`, ordered by path.

        Args:
            workspace_id: the caller's.
            run_id: the run.
            folder: the folder to list; empty is the top.
            recursive: everything below, without folders.
            after: the last path of the page before, folders ending in `/`; or empty.
            count_max: the most entries to return.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED.
        """
        prefix = f"{folder}/" if folder else ""
        end = folder + _AFTER_SLASH if folder else ""
        start = prefix
        if after.endswith("/"):
            start = after[:-1] + _AFTER_SLASH
        elif after:
            start = after + "\x01"  # no path has it: the first path greater than `after`
        async with self._database.query() as connection:
            _check_run(await connection.fetchrow(_SQL["get_run"], run_id, workspace_id), run_id)
            if recursive:
                rows = await connection.fetch(_SQL["list_recursive"], run_id, start, end, count_max)
                return [_artifact(run_id, row) for row in rows]
            rows = await connection.fetch(
                _SQL["list_folder"], run_id, start, end, count_max, len(prefix)
            )
        entries: list[Artifact | str] = []
        for row in rows:
            if row["digest"] is None:
                entries.append(row["entry"])
            else:
                entries.append(_artifact(run_id, {**row, "path": row["entry"]}))
        return entries

    # ---- deleting -----------------------------------------------------------

    async def delete(self, workspace_id: int, run_id: UUID, path: str, *, recursive: bool) -> int:
        """Delete an artifact, or a folder's; return how many there were.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED, ARTIFACT_NOT_FOUND.
        """
        below, end = (f"{path}/", path + _AFTER_SLASH) if recursive else ("", "")
        async with self._database.query() as connection, connection.transaction():
            await self._lock_run(connection, workspace_id, run_id)
            rows = await connection.fetch(_SQL["delete_artifacts"], run_id, path, below, end)
            if not rows:
                raise artifact_not_found(path)
            await self._release(connection, rows)
        return len(rows)

    async def purge(self, run_id: UUID, *, count_max: int) -> AsyncIterator[int]:
        """Let go of all artifacts and uploads of a tombstone, at most `count_max` at a time.

        Yields after each batch how many there were. A tombstone gets no new ones.
        """
        while True:
            async with self._database.query() as connection, connection.transaction():
                rows = await connection.fetch(_SQL["purge_artifacts"], run_id, count_max)
                await self._release(connection, rows)
            if not rows:
                break
            yield len(rows)
        while True:
            async with self._database.query() as connection:
                rows = await connection.fetch(_SQL["list_uploads"], run_id, count_max)
            for row in rows:
                await self.discard_upload(run_id, row["upload_id"])
            if not rows:
                break
            yield len(rows)

    # ---- within a transaction -----------------------------------------------

    async def _lock_run(
        self, connection: asyncpg.Connection, workspace_id: int, run_id: UUID
    ) -> int:
        row = await connection.fetchrow(_SQL["lock_run"], run_id, workspace_id)
        return _check_run(row, run_id)

    async def _check_path(self, connection: asyncpg.Connection, run_id: UUID, path: str) -> None:
        segments = path.split("/")
        parents = ["/".join(segments[:count]) for count in range(1, len(segments))]
        other = await connection.fetchval(
            _SQL["find_path_conflict"], run_id, path, parents, f"{path}/", path + _AFTER_SLASH
        )
        if other is not None:
            raise HeadraceError(
                Reason.ARTIFACT_PATH_CONFLICT,
                f"{path!r} cannot be a file beside {other!r}: one would be the other's folder",
                field="path",
                value=path,
                other=other,
            )

    async def _end_upload(
        self, connection: asyncpg.Connection, run_id: UUID, upload_id: UUID
    ) -> Any:
        row = await connection.fetchrow(_SQL["delete_upload"], run_id, upload_id)
        if row is None:
            raise upload_not_found(upload_id)
        await connection.execute(_SQL["delete_parts"], run_id, upload_id)
        return row

    async def _put(
        self, connection: asyncpg.Connection, target: Target, experiment_id: int, content: Content
    ) -> Artifact:
        """Point the path at content that holds a reference for it already."""
        blob = (experiment_id, content.digest, content.size)
        old = await connection.fetchrow(_SQL["get_artifact_for_update"], target.run_id, target.path)
        if old is not None and tuple(old) == blob:
            created_at = await connection.fetchval(
                _SQL["touch_artifact"], target.run_id, target.path, target.content_type
            )
        else:
            created_at = await connection.fetchval(
                _SQL["put_artifact"], target.run_id, target.path, *blob, target.content_type
            )
        if old is not None:
            await self._release(connection, [old])
        return Artifact(
            run_id=target.run_id,
            path=target.path,
            size=content.size,
            digest=content.digest,
            content_type=target.content_type,
            created_at=created_at,
            part_sha256s=content.part_sha256s,
        )

    async def _release(self, connection: asyncpg.Connection, rows: Sequence[Any]) -> None:
        """Let go of the content of artifacts, given as (experiment, digest, size).

        As many statements for a folder of any size as for one file.
        """
        released = Counter((row["experiment_id"], row["digest"], row["size"]) for row in rows)
        if not released:
            return
        blobs = tuple(map(list, zip(*released, strict=True)))
        await connection.execute(_SQL["lock_blobs"], *blobs)
        await connection.execute(_SQL["release_blobs"], *blobs, list(released.values()))
        gone = await connection.fetch(_SQL["delete_unreferenced_blobs"], *blobs)
        if gone:
            keys = [row["object_key"] for row in gone]
            await connection.execute(_SQL["put_deletions"], keys)


def artifact_not_found(path: str) -> HeadraceError:
    """Return the error for a path that holds no artifact."""
    return HeadraceError(
        Reason.ARTIFACT_NOT_FOUND, f"the run has no artifact {path!r}", field="path", value=path
    )


def upload_not_found(upload_id: UUID) -> HeadraceError:
    """Return the error for an upload that ended or never was."""
    return HeadraceError(
        Reason.UPLOAD_NOT_FOUND,
        "the upload was completed, aborted, has expired or was forgotten by the S3 server:"
        " call BeginUpload again",
        field="upload_id",
        value=upload_id.hex,
    )


def _check_run(row: Any, run_id: UUID) -> int:
    if row is None:
        raise HeadraceError(
            Reason.RUN_NOT_FOUND, f"no run {run_id.hex}", field="run_id", value=run_id.hex
        )
    if row["purged"]:
        raise HeadraceError(
            Reason.RUN_PURGED, f"run {run_id.hex} was purged", field="run_id", value=run_id.hex
        )
    experiment_id: int = row["experiment_id"]
    return experiment_id


def _artifact(run_id: UUID, row: Mapping[str, Any], part_sha256s: bytes = b"") -> Artifact:
    return Artifact(
        run_id=run_id,
        path=row["path"],
        size=row["size"],
        digest=row["digest"],
        content_type=row["content_type"],
        created_at=row["created_at"],
        part_sha256s=part_sha256s,
    )


async def _upload(connection: asyncpg.Connection, row: Any) -> Upload:
    parts = await connection.fetch(_SQL["list_parts"], row["run_id"], row["upload_id"])
    return Upload(
        run_id=row["run_id"],
        upload_id=row["upload_id"],
        path=row["path"],
        content_type=row["content_type"],
        content=Content(size=row["size"], part_sha256s=row["part_sha256s"]),
        object_key=row["object_key"],
        s3_upload_id=row["s3_upload_id"],
        progressed_at=row["progressed_at"],
        etags={part["part_number"]: part["etag"] for part in parts},
    )
