"""Workspaces in PostgreSQL: the boundary that no call sees across."""

from typing import Final
from uuid import UUID

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.experiments import DEFAULT_WORKSPACE, Workspace
from gateway.store.connections import Database
from gateway.store.queries import load

_SQL: Final = load("workspaces")


class WorkspaceStore:
    """The workspaces of one database; every method raises STORE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, name: str) -> Workspace | None:
        """Return a workspace; None when there is none of this name."""
        async with self._database.query() as connection:
            row = await connection.fetchrow(_SQL["find"], name)
        return None if row is None else Workspace(**row)

    async def create(self, name: str, *, request_id: UUID | None) -> Workspace:
        """Create a workspace, or return the one that the same request made.

        Raises:
            HeadraceError: WORKSPACE_EXISTS.
        """
        async with self._database.query() as connection, connection.transaction():
            if request_id is not None:
                row = await connection.fetchrow(_SQL["find_request"], request_id)
                if row is not None:
                    return Workspace(**row)
            row = await connection.fetchrow(_SQL["create"], name, request_id)
            if row is None and request_id is not None:
                # Whoever was faster may have been this very request, sent twice.
                row = await connection.fetchrow(_SQL["find_request"], request_id)
            if row is None:
                raise HeadraceError(
                    Reason.WORKSPACE_EXISTS,
                    f"there is a workspace {name!r}",
                    field="name",
                    value=name,
                )
            return Workspace(**row)

    async def page(
        self, *, after: str, limit: int, include_archived: bool, only: int | None
    ) -> list[Workspace]:
        """Return workspaces by name; `only` restricts them to one id."""
        async with self._database.query() as connection:
            rows = await connection.fetch(_SQL["page"], after, include_archived, only, limit)
        return [Workspace(**row) for row in rows]

    async def archive(self, name: str) -> Workspace:
        """Archive a workspace.

        Raises:
            HeadraceError: WORKSPACE_NOT_FOUND; FIELD_INVALID for `default`.
        """
        if name == DEFAULT_WORKSPACE:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"the workspace {DEFAULT_WORKSPACE!r} cannot be archived",
                field="name",
                value=name,
            )
        async with self._database.query() as connection:
            row = await connection.fetchrow(_SQL["archive"], name)
        if row is None:
            raise HeadraceError(
                Reason.WORKSPACE_NOT_FOUND, f"no workspace {name!r}", field="name", value=name
            )
        return Workspace(**row)
