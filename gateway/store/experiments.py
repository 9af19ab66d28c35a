"""Experiments in PostgreSQL: names unique in their workspace, deleted ones included."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.experiments import DEFAULT_EXPERIMENT, Experiment
from gateway.store.connections import Database
from gateway.store.queries import load

_SQL: Final = load("experiments")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentNames:
    """Which names new experiments may have; `pattern` None is any."""

    pattern: re.Pattern[str] | None = None

    def check(self, name: str) -> None:
        """Refuse a name that does not match as a whole; `Default` always does.

        Raises:
            HeadraceError: FIELD_INVALID.
        """
        if self.pattern is None or name == DEFAULT_EXPERIMENT:
            return
        if not self.pattern.fullmatch(name):
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"the experiment name {name[:80]!r} does not match {self.pattern.pattern!r}, "
                "which this gateway asks of new experiments",
                field="experiment",
                value=name,
                limit=self.pattern.pattern,
            )


class ExperimentStore:
    """The experiments of one database.

    Methods that take an id raise EXPERIMENT_NOT_FOUND for one that the workspace
    does not have; all raise STORE_UNAVAILABLE.
    """

    def __init__(self, database: Database, names: ExperimentNames | None = None) -> None:
        self._database = database
        self._names = names or ExperimentNames()

    async def create(
        self,
        workspace_id: int,
        name: str,
        *,
        description: str,
        tags: Mapping[str, str],
        request_id: UUID | None,
        get_if_exists: bool,
    ) -> tuple[Experiment, bool]:
        """Create an experiment, or return the one that the request made or asks for.

        Raises:
            HeadraceError: EXPERIMENT_EXISTS, EXPERIMENT_DELETED, FIELD_INVALID.
        """
        async with self._database.query() as connection, connection.transaction():
            if request_id is not None:
                made = await connection.fetchval(_SQL["find_request"], workspace_id, request_id)
                if made is not None:
                    return (await read_experiments(connection, workspace_id, [made]))[0], False
            found = await connection.fetchrow(_SQL["find"], workspace_id, name)
            if found is None:
                self._names.check(name)
                made = await connection.fetchval(
                    _SQL["create"], workspace_id, name, description, request_id
                )
                if made is not None:
                    if tags:
                        columns = (list(tags), list(tags.values()))
                        await connection.execute(_SQL["put_tags"], made, *columns)
                    return (await read_experiments(connection, workspace_id, [made]))[0], True
                found = await connection.fetchrow(_SQL["find"], workspace_id, name)
            # Whoever was faster may have been this very request, sent twice.
            if request_id is not None and found["experiment_id"] == await connection.fetchval(
                _SQL["find_request"], workspace_id, request_id
            ):
                get_if_exists = True
            _check_usable(found, name, get_if_exists=get_if_exists)
            ids = [found["experiment_id"]]
            return (await read_experiments(connection, workspace_id, ids))[0], False

    async def read(self, workspace_id: int, experiment_id: int) -> Experiment:
        """Return an experiment."""
        async with self._database.query() as connection:
            return await _read(connection, workspace_id, experiment_id)

    async def read_by_name(self, workspace_id: int, name: str) -> Experiment:
        """Return an experiment."""
        async with self._database.query() as connection:
            row = await connection.fetchrow(_SQL["find"], workspace_id, name)
            if row is None:
                raise not_found("name", name)
            return await _read(connection, workspace_id, row["experiment_id"])

    async def update(
        self, workspace_id: int, experiment_id: int, *, name: str | None, description: str | None
    ) -> Experiment:
        """Change the name or the description; None leaves one as it is.

        Raises:
            HeadraceError: EXPERIMENT_EXISTS when the name is taken; FIELD_INVALID when
                `Default` would get another.
        """
        if name is not None:
            self._names.check(name)
        async with self._database.query() as connection, connection.transaction():
            current = await _lock(connection, workspace_id, experiment_id)
            if name is not None:
                _refuse_default(experiment_id, current, "renamed")
            try:
                async with connection.transaction():
                    await connection.execute(_SQL["update"], experiment_id, name, description)
            except asyncpg.UniqueViolationError as error:
                raise _exists(name or "") from error
            return await _read(connection, workspace_id, experiment_id)

    async def write_tags(
        self,
        workspace_id: int,
        experiment_id: int,
        *,
        tags: Mapping[str, str],
        deleted_keys: Sequence[str],
    ) -> Experiment:
        """Set and delete tags."""
        async with self._database.query() as connection, connection.transaction():
            await _lock(connection, workspace_id, experiment_id)
            if deleted_keys:
                await connection.execute(_SQL["delete_tags"], experiment_id, list(deleted_keys))
            if tags:
                columns = (list(tags), list(tags.values()))
                await connection.execute(_SQL["put_tags"], experiment_id, *columns)
            await connection.execute(_SQL["touch"], experiment_id)
            return await _read(connection, workspace_id, experiment_id)

    async def delete(self, workspace_id: int, experiment_id: int) -> Experiment:
        """Hide an experiment.

        Raises:
            HeadraceError: FIELD_INVALID for `Default`, which runs without one belong to.
        """
        return await self._change(workspace_id, experiment_id, "delete")

    async def restore(self, workspace_id: int, experiment_id: int) -> Experiment:
        """Take a deletion back."""
        return await self._change(workspace_id, experiment_id, "restore")

    async def _change(self, workspace_id: int, experiment_id: int, query: str) -> Experiment:
        async with self._database.query() as connection, connection.transaction():
            name = await _lock(connection, workspace_id, experiment_id)
            if query == "delete":
                _refuse_default(experiment_id, name, "deleted")
            await connection.execute(_SQL[query], experiment_id)
            return await _read(connection, workspace_id, experiment_id)


async def ensure_experiment(
    connection: asyncpg.Connection, workspace_id: int, name: str, names: ExperimentNames
) -> None:
    """Keep an experiment that runs may be created in until the transaction ends, or make it.

    Raises:
        HeadraceError: EXPERIMENT_DELETED; FIELD_INVALID for a new name that is refused.
    """
    # Looked for first: nearly always there, and a failed insert burns an id.
    row = await connection.fetchrow(_SQL["find_to_keep"], workspace_id, name)
    if row is None:
        names.check(name)
        made = await connection.fetchval(_SQL["create"], workspace_id, name, "", None)
        if made is not None:
            return
        row = await connection.fetchrow(_SQL["find_to_keep"], workspace_id, name)
    _check_usable(row, name, get_if_exists=True)


async def read_experiments(
    connection: asyncpg.Connection, workspace_id: int, experiment_ids: Sequence[int]
) -> list[Experiment]:
    """Return the experiments of the workspace among some ids, in their order."""
    rows = await connection.fetch(_SQL["read"], workspace_id, experiment_ids)
    found = {row["experiment_id"]: _experiment(row) for row in rows}
    return [found[number] for number in experiment_ids if number in found]


async def resolve_experiments(
    connection: asyncpg.Connection,
    workspace_id: int,
    *,
    ids: Sequence[int],
    names: Sequence[str],
    include_deleted: bool,
) -> list[int]:
    """Return the ids of named experiments; of none at all, those of the whole workspace.

    Raises:
        HeadraceError: EXPERIMENT_NOT_FOUND.
    """
    if not ids and not names:
        rows = await connection.fetch(_SQL["all_ids"], workspace_id, include_deleted)
        return [row["experiment_id"] for row in rows]
    found: set[int] = set()
    if ids:
        rows = await connection.fetch(_SQL["ids"], workspace_id, ids)
        found |= {row["experiment_id"] for row in rows}
        if missing := set(ids) - found:
            raise not_found("experiment_ids", min(missing))
    if names:
        rows = await connection.fetch(_SQL["ids_by_name"], workspace_id, names)
        if missing_names := set(names) - {row["name"] for row in rows}:
            raise not_found("experiments", min(missing_names))
        found |= {row["experiment_id"] for row in rows}
    return sorted(found)


def not_found(field: str, value: object) -> HeadraceError:
    """Return the error for an experiment that the workspace does not have."""
    return HeadraceError(
        Reason.EXPERIMENT_NOT_FOUND,
        f"this workspace has no experiment {value!r}",
        field=field,
        value=value,
    )


def _exists(name: str) -> HeadraceError:
    return HeadraceError(
        Reason.EXPERIMENT_EXISTS,
        f"the workspace has an experiment {name!r} (perhaps a deleted one)",
        field="name",
        value=name,
    )


def _check_usable(row: Any, name: str, *, get_if_exists: bool) -> None:
    if not get_if_exists:
        raise _exists(name)
    if row["deleted_at"] is not None:
        raise HeadraceError(
            Reason.EXPERIMENT_DELETED,
            f"the experiment {name!r} is deleted; restore it first",
            field="experiment",
            value=name,
        )


def _refuse_default(experiment_id: int, name: str, verb: str) -> None:
    """Refuse the experiment that has the name in its workspace; each may have one."""
    if name == DEFAULT_EXPERIMENT:
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"the experiment {DEFAULT_EXPERIMENT!r} cannot be {verb}",
            field="experiment_id",
            value=experiment_id,
        )


async def _lock(connection: asyncpg.Connection, workspace_id: int, experiment_id: int) -> str:
    """Keep an experiment as it is until the transaction ends; return its name."""
    name: str | None = await connection.fetchval(_SQL["lock"], workspace_id, experiment_id)
    if name is None:
        raise not_found("experiment_id", experiment_id)
    return name


async def _read(
    connection: asyncpg.Connection, workspace_id: int, experiment_id: int
) -> Experiment:
    found = await read_experiments(connection, workspace_id, [experiment_id])
    if not found:
        raise not_found("experiment_id", experiment_id)
    return found[0]


def _experiment(row: Any) -> Experiment:
    return Experiment(
        experiment_id=row["experiment_id"],
        name=row["name"],
        description=row["description"],
        tags=tuple(zip(row["tag_keys"], row["tag_values"], strict=True)),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted_at=row["deleted_at"],
    )
