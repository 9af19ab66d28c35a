"""What artifacts leave behind: uploads without progress, objects to delete, keys that count.

For cleaning up. Whatever is decided here is done by `ArtifactStore.discard_upload`
or in S3; the only rows that go are those of deletions that were carried out.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from gateway.store.connections import Database
from gateway.store.queries import load

_SQL: Final = load("artifacts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredUpload:
    """An upload without progress for too long."""

    run_id: UUID
    upload_id: UUID
    path: str
    size: int
    object_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """An object to delete, and a multipart upload to abort, if any."""

    object_key: str
    s3_upload_id: str | None


class ArtifactLeftovers:
    """Reads what is left to clean up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_expired_uploads(
        self, *, older_than_s: float, count_max: int
    ) -> list[ExpiredUpload]:
        """Return uploads that made no progress for that many seconds, oldest first."""
        async with self._database.query() as connection:
            rows = await connection.fetch(_SQL["list_expired_uploads"], older_than_s, count_max)
        return [ExpiredUpload(**row) for row in rows]

    async def list_deletions(self, *, after: str, count_max: int) -> list[Deletion]:
        """Return objects to delete from S3, by key, from the first key greater than `after`."""
        async with self._database.query() as connection:
            rows = await connection.fetch(_SQL["list_deletions"], after, count_max)
        return [Deletion(**row) for row in rows]

    async def deleted(self, object_key: str) -> None:
        """Note that S3 no longer has the object."""
        async with self._database.query() as connection:
            await connection.execute(_SQL["delete_deletion"], object_key)

    async def known_keys(self, object_keys: list[str]) -> set[str]:
        """Return which of the keys belong to a blob or an upload."""
        async with self._database.query() as connection:
            rows = await connection.fetch(_SQL["list_known_keys"], object_keys)
        return {row["object_key"] for row in rows}

    async def upload_ids(self, object_keys: list[str]) -> dict[str, str | None]:
        """Return, of those keys that are being uploaded to, the S3 ids that count.

        None while S3 has not named the upload: any of its ids may become the one.
        """
        async with self._database.query() as connection:
            rows = await connection.fetch(_SQL["list_upload_ids"], object_keys)
        return {row["object_key"]: row["s3_upload_id"] for row in rows}

    async def list_blob_keys(self, *, after: str, count_max: int) -> list[tuple[str, int]]:
        """Return (key, size in bytes) of stored content, ordered by key."""
        async with self._database.query() as connection:
            rows = await connection.fetch(_SQL["list_blob_keys"], after, count_max)
        return [(row["object_key"], row["size"]) for row in rows]
