"""`headrace-gateway cleanup`: old runs of an experiment, and deleted ones for good."""

import asyncio
import json
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from gateway.artifacts.wiring import open_artifacts
from gateway.cli.options import (
    AsJson,
    Config,
    Dsn,
    EmbeddedDirectory,
    database_at,
    running,
    settings_of,
)
from gateway.config import Settings, SettingsError
from gateway.domain.cleanup import CleanupPlan, CleanupRule, CleanupRun
from gateway.domain.durations import parse_duration_s
from gateway.store import migrate as migrations
from gateway.store.cleanup import CleanupStore
from gateway.store.purge import PurgeStore
from gateway.telemetry import METRICS
from gateway.upkeep.cleaner import Cleaner
from gateway.upkeep.purger import Purged, Purger
from gateway.upkeep.throttle import Throttle

_ROWS_SHOWN_MAX = 50
_ID_DIGITS = 12  # as `headrace runs ls` shows them; enough to name a run


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What the command found and did."""

    plan: CleanupPlan
    purge_due: list[UUID]
    deleted: list[UUID] | None = None
    purged: Purged | None = None


def cleanup_command(
    *,
    experiment: Annotated[str, typer.Argument(help="The experiment's name.")],
    workspace: Annotated[str, typer.Option(help="Its workspace.")] = "default",
    max_age: Annotated[
        str | None,
        typer.Option(metavar="90d", help="Keep runs that ended less long ago: s, m, h, d or w."),
    ] = None,
    keep_top: Annotated[int, typer.Option(min=0, help="Keep so many of the best runs.")] = 0,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="metrics.KEY:max",
            help="What is best: the greatest value a run has reached (:max), or the least (:min).",
        ),
    ] = None,
    grace: Annotated[
        str | None,
        typer.Option(
            metavar="30d",
            help="Purge what was deleted longer ago.",
            show_default="the setting purge_grace_s",
        ),
    ] = None,
    execute: Annotated[
        bool, typer.Option("--execute/--dry-run", help="Act, or only report.")
    ] = False,
    config: Config = None,
    dsn: Dsn = None,
    embedded: EmbeddedDirectory = None,
    json_: AsJson = False,
) -> None:
    """Delete old runs of an experiment; purge those whose grace period is over.

    Only reports unless --execute is given. A deleted run can be restored until it is
    purged. Runs that are running or have the tag `headrace.protected`, and runs in
    which a kept one is nested, stay.

    headrace-gateway cleanup rec/ads/rank --max-age 90d --keep-top 10 --by metrics.val_ndcg:max
    """
    try:
        rule = CleanupRule.parse(
            experiment=experiment, workspace=workspace, max_age=max_age, keep_top=keep_top, by=by
        )
        grace_s = None if grace is None else parse_duration_s(grace)
    except ValueError as error:
        raise SettingsError([str(error)]) from None
    console = Console(stderr=json_)
    with running(settings_of({"dsn": dsn, "embedded": embedded}, config)) as settings:
        if grace_s is None:
            grace_s = settings.purge_grace_s
        outcome = asyncio.run(
            _clean_up(settings, rule, grace_s=grace_s, execute=execute, console=console)
        )
    if json_:
        typer.echo(json.dumps(_as_json(outcome, rule)))
    else:
        _print(outcome, console)


async def _clean_up(
    settings: Settings, rule: CleanupRule, *, grace_s: float, execute: bool, console: Console
) -> _Outcome:
    await migrations.migrate(settings.dsn)
    async with database_at(settings.dsn) as database:
        cleaner, store = Cleaner(CleanupStore(database)), PurgeStore(database)
        decision = await cleaner.decide(rule)
        number = decision.experiment_id
        due = await store.begun(number)
        due += await store.due(grace_s=grace_s, experiment_id=number, tried=frozenset())
        if not execute:
            return _Outcome(plan=decision.plan, purge_due=due)
        deleted = await cleaner.delete(decision.plan)
        throttle = Throttle(time_share_max=1, seconds=METRICS.purge_seconds)
        purger = Purger(store, grace_s=grace_s, throttle=throttle)
        columns = (SpinnerColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True) if due else nullcontext() as bar:
            task = None if bar is None else bar.add_task("purging")

            def show(done: Purged) -> None:
                if bar is not None and task is not None:
                    text = f"purging: {done.runs} of {len(due)} runs, {done.rows:,} rows"
                    bar.update(task, description=text)

            purged = await purger.purge(number, progress=show)
        async with open_artifacts(settings, database) as artifacts:
            if artifacts is not None:  # else a gateway deletes the objects
                await artifacts.cleanup.sweep()
    return _Outcome(plan=decision.plan, purge_due=due, deleted=deleted, purged=purged)


def _as_json(outcome: _Outcome, rule: CleanupRule) -> dict[str, Any]:
    def shown(run: CleanupRun) -> dict[str, Any]:
        return {
            "run_id": run.run_id.hex,
            "name": run.name,
            "end_time": None if run.ended_at is None else run.ended_at.isoformat(),
            "value": run.value,
        }

    plan, purged = outcome.plan, outcome.purged
    return {
        "experiment": rule.experiment,
        "dry_run": outcome.deleted is None,
        "delete": [shown(run) for run in plan.gone],
        "keep": [
            {**shown(kept.run), "reasons": [*kept.reasons], "why": kept.why} for kept in plan.kept
        ],
        "purge_due": [run_id.hex for run_id in outcome.purge_due],
        "deleted": None if outcome.deleted is None else [run.hex for run in outcome.deleted],
        "purged": None if purged is None else {"runs": purged.runs, "rows": purged.rows},
    }


def _print(outcome: _Outcome, console: Console) -> None:
    plan = outcome.plan
    table = Table(
        "",
        Column("run", min_width=_ID_DIGITS),
        Column("name", overflow="fold"),
        "ended",
        "value",
        Column("why", overflow="fold"),
    )
    rows = [("[red]delete", run, "no reason keeps it") for run in plan.gone]
    rows += [("[green]keep", kept.run, kept.why) for kept in plan.kept]
    for what, run, why in rows[:_ROWS_SHOWN_MAX]:
        ended = "" if run.ended_at is None else run.ended_at.strftime("%Y-%m-%d")
        value = "" if run.value is None else f"{run.value:.6g}"
        table.add_row(what, run.run_id.hex[:_ID_DIGITS], Text(run.name), ended, value, Text(why))
    if rows:
        console.print(table)
    if len(rows) > _ROWS_SHOWN_MAX:
        console.print(f"and {len(rows) - _ROWS_SHOWN_MAX} more; --json lists them all")
    if outcome.deleted is None:
        console.print(
            f"would delete {len(plan.gone)} runs, keep {len(plan.kept)},"
            f" purge {len(outcome.purge_due)} deleted before; use --execute to do it"
        )
        return
    console.print(f"deleted {len(outcome.deleted)} runs, kept {len(plan.kept)}")
    changed = len(plan.gone) - len(outcome.deleted)
    if changed:
        console.print(f"{changed} were changed meanwhile and stay")
    if outcome.purged is not None:
        console.print(f"purged {outcome.purged.runs} runs: {outcome.purged.rows:,} rows")
