"""What a cleanup decides upon, and soft deletion under the same rules."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from gateway.domain.cleanup import LOST_KEPT_S, CleanupRule, CleanupRun
from gateway.domain.metadata import PROTECTED_TAG
from gateway.store.connections import Database
from gateway.store.experiments import not_found
from gateway.store.queries import load

_SQL: Final = load("cleanup")


class CleanupStore:
    """The runs of one database; methods raise STORE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def experiment_id(self, workspace: str, name: str) -> int:
        """Return the id of an experiment.

        Raises:
            HeadraceError: EXPERIMENT_NOT_FOUND.
        """
        async with self._database.query() as connection:
            found: int | None = await connection.fetchval(_SQL["find_experiment"], workspace, name)
        if found is None:
            raise not_found("experiment", name)
        return found

    async def runs(self, experiment_id: int, rule: CleanupRule) -> list[CleanupRun]:
        """Return the runs of an experiment that are not deleted, the newest first."""
        key, greatest = (None, False) if rule.by is None else (rule.by.key, rule.by.greatest)
        async with self._database.query() as connection:
            rows = await connection.fetch(_SQL["runs"], experiment_id, PROTECTED_TAG, key, greatest)
        return [CleanupRun(**row) for row in rows]

    async def delete(self, run_ids: Sequence[UUID]) -> list[UUID]:
        """Soft-delete runs one by one, nested ones first; return those that were.

        A run that has meanwhile become running, lost, protected or somebody's parent is not.
        """
        deleted = []
        for run_id in run_ids:
            async with self._database.query() as connection:
                if await connection.fetchval(_SQL["delete"], run_id, PROTECTED_TAG, LOST_KEPT_S):
                    deleted.append(run_id)
        return deleted
