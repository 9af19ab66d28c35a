"""The rules of a run that reads apply: its step policy, and what its attempts hide."""

from typing import Final
from uuid import UUID

import asyncpg

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.policies import StepPolicy, cutoffs
from gateway.store.queries import load

_SQL: Final = load("reading")


async def read_run(
    connection: asyncpg.Connection, run_id: UUID, *, workspace_id: int
) -> StepPolicy:
    """Return the run's step policy.

    Raises:
        HeadraceError: RUN_NOT_FOUND, RUN_PURGED.
    """
    row = await connection.fetchrow(_SQL["read_run"], run_id, workspace_id)
    run = run_id.hex
    if row is None:
        raise HeadraceError(
            Reason.RUN_NOT_FOUND, f"no run {run} in this workspace", field="run_id", value=run
        )
    if row["purged"]:
        raise HeadraceError(Reason.RUN_PURGED, f"run {run} was purged", field="run_id", value=run)
    return StepPolicy(row["step_policy"])


async def read_cutoffs(
    connection: asyncpg.Connection, run_id: UUID
) -> tuple[dict[int, int], frozenset[str], int]:
    """Return what hides each attempt, the keys exempt from it, and the number of attempts."""
    rows = await connection.fetch(_SQL["read_attempts"], run_id)
    exempt = frozenset(key for row in rows for key in row["resume_exempt_keys"])
    return cutoffs({row["attempt"]: row["resume_step"] for row in rows}), exempt, len(rows)
