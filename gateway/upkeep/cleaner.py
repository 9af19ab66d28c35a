"""Applies cleanup rules: decides, deletes softly, and leaves the rest to the purge."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from gateway.domain.cleanup import CleanupPlan, CleanupRule, plan_cleanup
from gateway.store.cleanup import CleanupStore
from gateway.telemetry import METRICS


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a rule means for an experiment at one moment."""

    experiment_id: int
    plan: CleanupPlan


class Cleaner:
    """The cleanups of one database."""

    def __init__(self, store: CleanupStore) -> None:
        self._store = store

    async def decide(self, rule: CleanupRule) -> Decision:
        """Return what a rule would delete and what it would keep; changes nothing.

        Raises:
            HeadraceError: EXPERIMENT_NOT_FOUND, STORE_UNAVAILABLE.
        """
        experiment_id = await self._store.experiment_id(rule.workspace, rule.experiment)
        runs = await self._store.runs(experiment_id, rule)
        plan = plan_cleanup(runs, rule, now=datetime.now(UTC))
        return Decision(experiment_id=experiment_id, plan=plan)

    async def delete(self, plan: CleanupPlan) -> list[UUID]:
        """Soft-delete what a plan lets go, unless it has changed since; return what was."""
        deleted = await self._store.delete([run.run_id for run in plan.gone])
        METRICS.runs_cleaned_up.inc(len(deleted))
        return deleted
