"""Runs in PostgreSQL: created once, whoever races; seen only from their workspace."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.metadata import (
    PROTECTED_TAG,
    DatasetInput,
    Entry,
    MetadataRows,
    Notes,
    SummaryValue,
)
from gateway.domain.runs import (
    RUN_METRICS_MAX,
    Attempt,
    NewRun,
    Run,
    RunData,
    RunMetric,
    RunOrigin,
    RunState,
)
from gateway.store.connections import Database
from gateway.store.experiments import ExperimentNames, ensure_experiment
from gateway.store.metadata import write_metadata
from gateway.store.queries import load
from gateway.store.run_metrics import refresh_at_the_end

_SQL: Final = load("runs")
_OF_CHANGES: Final = ("params", "tags", "summary", "facts")
_ALL: Final = (*_OF_CHANGES, "metrics", "datasets", "exempt_keys")


class RunStore:
    """The runs of one database.

    Every method raises RUN_NOT_FOUND for a run that the workspace does not
    have, RUN_PURGED for one that it had, and STORE_UNAVAILABLE. A run that is
    returned by a change has no metrics, datasets and exempt keys: the change must
    be answered, however large the run is.
    """

    def __init__(self, database: Database, names: ExperimentNames | None = None) -> None:
        self._database = database
        self._names = names or ExperimentNames()

    async def create(self, wanted: NewRun) -> tuple[Run, bool]:
        """Create a run and, if need be, its experiment; or return the one that has the id.

        Returns:
            The run as stored, and whether this call made it.

        Raises:
            HeadraceError: RUN_EXISTS when it has other policies, or
                belongs to another workspace; EXPERIMENT_DELETED; FIELD_INVALID for a
                parent that is nested in the run; the fault of an entry.
        """
        run_id, workspace_id = wanted.run_id, wanted.workspace_id
        columns = (
            run_id,
            workspace_id,
            wanted.experiment,
            wanted.name,
            wanted.step_policy,
            wanted.late_policy,
            wanted.parent_run_id,
            wanted.started_at,
            wanted.origin.user_name,
            wanted.origin.host,
            wanted.origin.git_commit,
            wanted.origin.entry_point,
        )
        bare = wanted.parent_run_id is None and not wanted.entries
        async with self._database.query() as connection:
            if bare:  # one statement makes it, unless the run or no such experiment is there
                row = await connection.fetchrow(_SQL["create"], *columns)
                if row is not None:
                    return _run(row, RunData()), True
            async with connection.transaction():
                # First, and without its experiment: that may have been renamed since.
                runs = await read_runs(connection, [run_id], workspace_id, kinds=_OF_CHANGES)
                made = False
                if not runs:
                    await ensure_experiment(
                        connection, workspace_id, wanted.experiment, self._names
                    )
                    made = await connection.fetchrow(_SQL["create"], *columns) is not None
                    if made:
                        await _check_parent(connection, run_id, wanted.parent_run_id)
                        await _write(connection, run_id, wanted.entries)
                    runs = await read_runs(connection, [run_id], workspace_id, kinds=_OF_CHANGES)
                if not runs:
                    raise HeadraceError(
                        Reason.RUN_EXISTS,
                        f"the run id {run_id.hex} is taken; make one of your own",
                        field="run_id",
                        value=run_id.hex,
                    )
                _check_equal(runs[0], wanted)
                return runs[0], made

    async def read(self, run_id: UUID, *, workspace_id: int) -> Run:
        """Return a run with all that is known of it; at most RUN_METRICS_MAX metrics."""
        async with (
            self._database.query() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await _read(connection, run_id, workspace_id, kinds=_ALL)

    async def finish(
        self,
        run_id: UUID,
        *,
        workspace_id: int,
        attempt: int,
        state: RunState,
        ended_at: datetime | None = None,
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
                await connection.execute(_SQL["finish"], run_id, state, ended_at)
                await refresh_at_the_end(connection, run_id)
            return await _read(connection, run_id, workspace_id), applied

    async def reopen(self, run_id: UUID, *, workspace_id: int) -> Run:
        """Set a run that has ended to RUNNING."""
        async with self._database.query() as connection, connection.transaction():
            _check_present(await connection.fetchrow(_SQL["lock"], run_id, workspace_id), run_id)
            await connection.execute(_SQL["reopen"], run_id)
            await connection.execute(_SQL["heartbeat"], run_id)
            return await _read(connection, run_id, workspace_id)

    async def update(self, run_id: UUID, *, workspace_id: int, changes: Mapping[str, str]) -> Run:
        """Change some of name, notes, user_name, host, git_commit, entry_point."""
        async with self._database.query() as connection, connection.transaction():
            _check_present(await connection.fetchrow(_SQL["lock"], run_id, workspace_id), run_id)
            columns = ("name", "user_name", "host", "git_commit", "entry_point")
            await connection.execute(_SQL["update"], run_id, *map(changes.get, columns))
            if "notes" in changes:
                await _write(connection, run_id, [Notes(text=changes["notes"])])
            return await _read(connection, run_id, workspace_id)

    async def write_metadata(
        self, run_id: UUID, entries: Sequence[Entry], *, workspace_id: int
    ) -> None:
        """Write entries, all or none.

        Raises:
            HeadraceError: PARAM_CHANGED, or the first fault of an entry.
        """
        async with self._database.query() as connection, connection.transaction():
            _check_present(await connection.fetchrow(_SQL["exists"], run_id, workspace_id), run_id)
            await _write(connection, run_id, entries)

    async def delete(self, run_id: UUID, *, workspace_id: int) -> Run:
        """Hide a run.

        Raises:
            HeadraceError: RUN_PROTECTED.
        """
        async with self._database.query() as connection, connection.transaction():
            _check_present(await connection.fetchrow(_SQL["lock"], run_id, workspace_id), run_id)
            if await connection.fetchval(_SQL["is_protected"], run_id, PROTECTED_TAG):
                raise HeadraceError(
                    Reason.RUN_PROTECTED,
                    f"run {run_id.hex} has the tag {PROTECTED_TAG}; remove it first",
                    field="run_id",
                    value=run_id.hex,
                )
            await connection.execute(_SQL["delete"], run_id)
            return await _read(connection, run_id, workspace_id)

    async def restore(self, run_id: UUID, *, workspace_id: int) -> Run:
        """Take a deletion back.

        Raises:
            HeadraceError: RUN_PURGED, also when its purge has begun.
        """
        async with self._database.query() as connection, connection.transaction():
            _check_present(await connection.fetchrow(_SQL["lock"], run_id, workspace_id), run_id)
            await connection.execute(_SQL["restore"], run_id)
            return await _read(connection, run_id, workspace_id)

    async def heartbeat(self, run_id: UUID, *, workspace_id: int) -> None:
        """Note that a run's job is alive; a LOST one is RUNNING again."""
        async with self._database.query() as connection:
            _check_present(await connection.fetchrow(_SQL["exists"], run_id, workspace_id), run_id)
            await connection.execute(_SQL["heartbeat"], run_id)
            await connection.execute(_SQL["revive"], run_id)


async def read_runs(
    connection: asyncpg.Connection,
    run_ids: Sequence[UUID],
    workspace_id: int,
    *,
    kinds: Sequence[str] = (),
) -> list[Run]:
    """Return the runs of the workspace among `run_ids`, in their order.

    Args:
        connection: in a transaction when the answers have to be of one snapshot.
        run_ids: which.
        workspace_id: the caller's.
        kinds: fields of RunData to read; of metrics at most RUN_METRICS_MAX a run.

    Raises:
        HeadraceError: RUN_PURGED.
    """
    rows = await connection.fetch(_SQL["core"], run_ids, workspace_id)
    found: dict[UUID, dict[str, list[Any]]] = {row["run_id"]: defaultdict(list) for row in rows}

    async def collect(kind: str) -> None:
        limit = (RUN_METRICS_MAX,) if kind == "metrics" else ()
        for row in await connection.fetch(_SQL[kind], list(found), *limit):
            found[row["run_id"]][kind].append(_ITEMS[kind](row))

    if found:
        for kind in kinds:
            await collect(kind)
    runs = {
        row["run_id"]: _run(
            row, RunData(**{kind: tuple(items) for kind, items in found[row["run_id"]].items()})
        )
        for row in rows
    }
    return [runs[run_id] for run_id in run_ids if run_id in runs]


async def _read(
    connection: asyncpg.Connection,
    run_id: UUID,
    workspace_id: int,
    *,
    kinds: Sequence[str] = _OF_CHANGES,
) -> Run:
    runs = await read_runs(connection, [run_id], workspace_id, kinds=kinds)
    _check_present(runs[0] if runs else None, run_id)
    return runs[0]


async def _write(connection: asyncpg.Connection, run_id: UUID, entries: Sequence[Entry]) -> None:
    if not entries:
        return
    rows = MetadataRows()
    rows.add(run_id, entries, 0)
    if not rows.refusals:
        await write_metadata(connection, rows)
    if rows.refusals:
        raise rows.refusals[0].error()


async def _check_parent(
    connection: asyncpg.Connection, run_id: UUID, parent_run_id: UUID | None
) -> None:
    """Refuse a parent that is nested in the run, also when it is being created just now."""
    if parent_run_id is None:
        return
    line = await connection.fetchrow(_SQL["line_above"], run_id, parent_run_id)
    # A line that ends at a run without a parent can never become a ring: parents are
    # immutable. Others wait for each other; jobs whose parents were there first never do.
    if line["is_open"]:
        await connection.execute(_SQL["lock_open_lines"])
        line = await connection.fetchrow(_SQL["line_above"], run_id, parent_run_id)
    if line["returns"]:
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"run {parent_run_id.hex} is itself nested in run {run_id.hex}",
            field="parent_run_id",
            value=parent_run_id.hex,
        )


def _check_equal(run: Run, wanted: NewRun) -> None:
    for field in ("step_policy", "late_policy"):
        found, value = getattr(run, field), getattr(wanted, field)
        if found != value:
            raise HeadraceError(
                Reason.RUN_EXISTS,
                f"run {run.run_id.hex} exists with {field} {found!r}, not {value!r}",
                field=field,
                value=value,
            )


def _check_present(found: Any, run_id: UUID) -> None:
    if found is None:
        raise HeadraceError(
            Reason.RUN_NOT_FOUND,
            f"no run {run_id.hex} in this workspace",
            field="run_id",
            value=run_id.hex,
        )
    if not isinstance(found, Run) and found["purged_at"] is not None:
        raise HeadraceError(
            Reason.RUN_PURGED,
            f"run {run_id.hex} was purged; it cannot be used again",
            field="run_id",
            value=run_id.hex,
        )


_ITEMS: Final[Mapping[str, Any]] = {
    "params": lambda row: (row["key"], row["value"]),
    "tags": lambda row: (row["key"], row["value"]),
    "summary": lambda row: SummaryValue(
        key=row["key"], value=row["text"] if row["number"] is None else row["number"]
    ),
    "metrics": lambda row: RunMetric(
        key=row["key"],
        rank=row["rank"],
        point_count=row["point_count"],
        last_step=row["last_step"],
        last_time_us=row["last_time"],
        last_value=row["last_value"],
        min_value=row["min_value"],
        max_value=row["max_value"],
    ),
    "facts": lambda row: (row["name"], row["value"]),
    "datasets": lambda row: DatasetInput(
        name=row["name"],
        digest=row["digest"],
        context=row["context"],
        source_type=row["source_type"],
        source=row["source"],
        schema=row["schema"],
        profile=row["profile"],
    ),
    "exempt_keys": lambda row: (row["attempt"], tuple(row["resume_exempt_keys"])),
}


def _run(row: Any, data: RunData) -> Run:
    _check_present(row, row["run_id"])
    attempts = zip(row["attempts"], row["resume_steps"], row["attempt_starts"], strict=True)
    return Run(
        run_id=row["run_id"],
        experiment_id=row["experiment_id"],
        experiment=row["experiment"],
        name=row["name"],
        state=RunState(row["state"]),
        step_policy=row["step_policy"],
        late_policy=row["late_policy"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        deleted_at=row["deleted_at"],
        heartbeat_at=row["heartbeat_at"],
        parent_run_id=row["parent_run_id"],
        origin=RunOrigin(
            user_name=row["user_name"],
            host=row["host"],
            git_commit=row["git_commit"],
            entry_point=row["entry_point"],
        ),
        notes=row["notes"] or "",
        attempts=tuple(
            Attempt(attempt=attempt, resume_step=step, started_at=at)
            for attempt, step, at in attempts
        ),
        data=data,
    )
