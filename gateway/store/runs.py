"""Runs in PostgreSQL: created once, whoever races; seen only from their workspace."""

from typing import Any, Final
from uuid import UUID

import asyncpg

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.runs import Attempt, Run, RunState
from gateway.store.connections import Database
from gateway.store.queries import load

_SQL: Final = load("runs")


class RunStore:
    """The runs of one database.

    Every method raises RUN_NOT_FOUND for a run that the workspace does not
    have, RUN_PURGED for one that it had, and STORE_UNAVAILABLE.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        run_id: UUID,
        *,
        workspace_id: int,
        experiment: str,
        name: str,
        step_policy: int,
        late_policy: int,
    ) -> tuple[Run, bool]:
        """Create a run and, if need be, its experiment; or return the one that has the id.

        Returns:
            The run as stored, and whether this call made it.

        Raises:
            HeadraceError: RUN_EXISTS when it differs in what is immutable, or
                belongs to another workspace.
        """
        async with self._database.query() as connection, connection.transaction():
            experiment_id = await _experiment_id(connection, workspace_id, experiment)
            made = await connection.fetchval(
                _SQL["create"], run_id, workspace_id, experiment_id, name, step_policy, late_policy
            )
            row = await connection.fetchrow(_SQL["read"], run_id, workspace_id)
            if row is None:
                raise HeadraceError(
                    Reason.RUN_EXISTS,
                    f"the run id {run_id.hex} is taken; make one of your own",
                    field="run_id",
                    value=run_id.hex,
                )
            run = _run(row)
            wanted = {
                "experiment": experiment,
                "step_policy": step_policy,
                "late_policy": late_policy,
            }
            for field, value in wanted.items():
                if (found := getattr(run, field)) != value:
                    raise HeadraceError(
                        Reason.RUN_EXISTS,
                        f"run {run_id.hex} exists with {field} {found!r}, not {value!r}",
                        field=field,
                        value=value,
                    )
            return run, made is not None

    async def read(self, run_id: UUID, *, workspace_id: int) -> Run:
        """Return a run."""
        async with self._database.query() as connection:
            return await _read(connection, run_id, workspace_id)

    async def finish(
        self, run_id: UUID, *, workspace_id: int, attempt: int, state: RunState
    ) -> tuple[Run, bool]:
        """End a run if `attempt` is its newest; return it and whether it was.

        Raises:
            HeadraceError: ATTEMPT_NOT_FOUND for an attempt that nobody has begun.
        """
        async with self._database.query() as connection, connection.transaction():
            _check_present(await connection.fetchrow(_SQL["lock"], run_id, workspace_id), run_id)
            newest = await connection.fetchval(_SQL["newest_attempt"], run_id)
            if attempt > newest:
                raise HeadraceError(
                    Reason.ATTEMPT_NOT_FOUND,
                    f"run {run_id.hex} has no attempt {attempt}; its newest is {newest}",
                    field="attempt",
                    value=attempt,
                    limit=newest,
                )
            applied = attempt == newest
            if applied:
                await connection.execute(_SQL["finish"], run_id, state)
            return await _read(connection, run_id, workspace_id), applied

    async def heartbeat(self, run_id: UUID, *, workspace_id: int) -> None:
        """Note that a run's job is alive."""
        async with self._database.query() as connection:
            _check_present(await connection.fetchrow(_SQL["exists"], run_id, workspace_id), run_id)
            await connection.execute(_SQL["heartbeat"], run_id)


async def _experiment_id(connection: asyncpg.Connection, workspace_id: int, name: str) -> int:
    # Looked for first: nearly always there, and a failed insert burns an id.
    for query in ("find_experiment", "create_experiment", "find_experiment"):
        found: int | None = await connection.fetchval(_SQL[query], workspace_id, name)
        if found is not None:
            return found
    raise HeadraceError(Reason.INTERNAL, f"experiment {name!r} vanished while it was created")


async def _read(connection: asyncpg.Connection, run_id: UUID, workspace_id: int) -> Run:
    row = await connection.fetchrow(_SQL["read"], run_id, workspace_id)
    _check_present(row, run_id)
    return _run(row)


def _check_present(row: Any, run_id: UUID) -> None:
    if row is None:
        raise HeadraceError(
            Reason.RUN_NOT_FOUND,
            f"no run {run_id.hex} in this workspace",
            field="run_id",
            value=run_id.hex,
        )
    if row["purged_at"] is not None:
        raise HeadraceError(
            Reason.RUN_PURGED,
            f"run {run_id.hex} was purged; it cannot be used again",
            field="run_id",
            value=run_id.hex,
        )


def _run(row: Any) -> Run:
    _check_present(row, row["run_id"])
    attempts = zip(row["attempts"], row["resume_steps"], row["started_at"], strict=True)
    return Run(
        run_id=row["run_id"],
        experiment=row["experiment"],
        name=row["name"],
        state=RunState(row["state"]),
        step_policy=row["step_policy"],
        late_policy=row["late_policy"],
        created_at=row["created_at"],
        ended_at=row["ended_at"],
        heartbeat_at=row["heartbeat_at"],
        attempts=tuple(
            Attempt(attempt=attempt, resume_step=step, started_at=at)
            for attempt, step, at in attempts
        ),
    )
