"""`headrace-gateway cleanup` reports, deletes, purges; a gateway does the same by itself."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import headrace
import pytest
from headrace.cli import main as sync

from gateway.cli import main
from gateway.domain.cleanup import LOST_KEPT_S
from gateway.domain.runs import RunState
from gateway.store.cleanup import CleanupStore
from gateway.store.connections import Database
from tests.conftest import run_apart
from tests.support.chunks import StoredRun
from tests.support.command import Done, run_command
from tests.support.gateway_process import GatewayProcess
from tests.support.waiting import eventually

EXPERIMENT = "rec/ads/rank"


async def _run(
    dsn: str, name: str, *, days: float | None, ndcg: float | None, parent: UUID | None, lost: bool
) -> UUID:
    connection = await asyncpg.connect(dsn)
    run_id = uuid4()
    await connection.execute(
        "INSERT INTO experiments (experiment_id, workspace_id, name) VALUES (7, 0, $1)"
        " ON CONFLICT DO NOTHING",
        EXPERIMENT,
    )
    await connection.execute(
        "INSERT INTO runs (run_id, workspace_id, experiment_id, name, state, ended_at,"
        " parent_run_id) VALUES ($1, 0, 7, $2, $5, now() - make_interval(secs => $3 * 86400), $4)",
        run_id,
        name,
        days,
        parent,
        RunState.RUNNING if days is None else RunState.LOST if lost else RunState.FINISHED,
    )
    if ndcg is not None:
        await connection.execute(
            "INSERT INTO run_metrics VALUES ($1, 7, 'val_ndcg', 0, 9, 9, 9, 0, 0, $2)", run_id, ndcg
        )
    await connection.close()
    return run_id


def make_run(
    dsn: str,
    name: str,
    *,
    days: float | None = 100,
    ndcg: float | None = None,
    parent: UUID | None = None,
    lost: bool = False,
) -> UUID:
    found: UUID = run_apart(_run(dsn, name, days=days, ndcg=ndcg, parent=parent, lost=lost))
    return found


async def _fetch(dsn: str, query: str, *arguments: object) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    rows: list[Any] = await connection.fetch(query, *arguments)
    await connection.close()
    return rows


def column(dsn: str, query: str, *arguments: object) -> set[Any]:
    return {row[0] for row in run_apart(_fetch(dsn, query, *arguments))}


def cleanup(dsn: str, *arguments: str) -> Done:
    return run_command(main, "cleanup", *arguments, "--dsn", dsn, environment={"COLUMNS": "200"})


def test_nothing_is_done_unless_told_and_the_report_says_why(database_dsn: str) -> None:
    parent = make_run(database_dsn, "parent")
    names = {
        make_run(database_dsn, "best", ndcg=0.9).hex: "best",
        make_run(database_dsn, "[/bad]", ndcg=0.1, parent=parent).hex: "[/bad]",
        make_run(database_dsn, "young", days=1, ndcg=0.2, parent=parent).hex: "young",
        make_run(database_dsn, "going", days=None).hex: "going",
        parent.hex: "parent",
    }
    rule = (EXPERIMENT, "--max-age", "90d", "--keep-top", "1", "--by", "metrics.val_ndcg:max")
    told = cleanup(database_dsn, *rule, "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["dry_run"] is True
    assert [run["name"] for run in report["delete"]] == ["[/bad]"]
    assert {names[run["run_id"]]: run["reasons"] for run in report["keep"]} == {
        "best": ["top"],
        "young": ["young"],
        "going": ["running"],
        "parent": ["parent"],
    }
    table = cleanup(database_dsn, *rule).stdout
    assert "it is number 1 by metrics.val_ndcg:max" in table
    assert " [/bad] " in table  # a name, no markup
    assert "would delete 1 runs, keep 4, purge 0 deleted before" in table
    deleted = "SELECT name FROM runs WHERE deleted_at IS NOT NULL"
    assert not column(database_dsn, deleted)
    done = json.loads(cleanup(database_dsn, *rule, "--execute", "--json").stdout)
    assert [names[run_id] for run_id in done["deleted"]] == ["[/bad]"]
    assert column(database_dsn, deleted) == {"[/bad]"}
    assert done["purged"] == {"runs": 0, "rows": 0}


def test_a_run_that_was_lost_a_moment_ago_is_kept_and_the_report_says_why(
    database_dsn: str,
) -> None:
    make_run(database_dsn, "best", ndcg=0.9)
    make_run(database_dsn, "cut off", days=1 / 1440, ndcg=0.1, lost=True)
    make_run(database_dsn, "gone", days=2, ndcg=0.1, lost=True)
    rule = (EXPERIMENT, "--keep-top", "1", "--by", "metrics.val_ndcg:max")
    assert "it was lost less than a day ago" in cleanup(database_dsn, *rule).stdout
    done = json.loads(cleanup(database_dsn, *rule, "--execute", "--json").stdout)
    kept = {run["name"]: run["reasons"] for run in done["keep"]}
    assert kept == {"best": ["top"], "cut off": ["lost"]}
    assert column(database_dsn, "SELECT name FROM runs WHERE deleted_at IS NOT NULL") == {"gone"}


async def test_a_run_that_was_lost_since_the_report_stays(
    connection: asyncpg.Connection, database: Database
) -> None:
    run_id = (await StoredRun.create(connection)).run_id
    store = CleanupStore(database)
    lost = (
        "UPDATE runs SET state = 5, ended_at = now() - make_interval(secs => $2) WHERE run_id = $1"
    )
    await connection.execute(lost, run_id, LOST_KEPT_S - 60)
    assert await store.delete([run_id]) == []
    await connection.execute(lost, run_id, LOST_KEPT_S)
    assert await store.delete([run_id]) == [run_id]


def test_what_was_deleted_is_purged_after_the_grace_period(database_dsn: str) -> None:
    run_id = make_run(database_dsn, "old", ndcg=0.5)
    rule = (EXPERIMENT, "--max-age", "90d", "--execute")
    assert "deleted 1 runs" in cleanup(database_dsn, *rule).stdout
    assert not column(database_dsn, "SELECT run_id FROM runs WHERE purged_at IS NOT NULL")
    told = json.loads(cleanup(database_dsn, *rule[:-1], "--grace", "0s", "--json").stdout)
    assert told["purge_due"] == [run_id.hex]
    assert "purged 1 runs" in cleanup(database_dsn, *rule, "--grace", "0s").stdout
    purged = "SELECT run_id FROM runs WHERE purged_at IS NOT NULL"
    assert column(database_dsn, purged) == {run_id}
    assert not column(database_dsn, "SELECT run_id FROM run_metrics")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ((EXPERIMENT,), 2, "needs max_age or keep_top"),
        ((EXPERIMENT, "--max-age", "soon"), 2, "'soon' is no duration"),
        ((EXPERIMENT, "--keep-top", "3"), 2, "keep_top and by go together"),
        ((EXPERIMENT, "--max-age", "1d", "--grace", "x"), 2, "'x' is no duration"),
        (("no/such/one", "--max-age", "1d"), 1, "no experiment 'no/such/one'"),
    ],
)
def test_mistakes_are_one_clear_line(
    database_dsn: str, arguments: tuple[str, ...], status: int, text: str
) -> None:
    failed = cleanup(database_dsn, *arguments)
    assert (failed.returncode, failed.stdout) == (status, "")
    assert text in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_gateway_cleans_up_and_purges_by_its_settings(database_dsn: str, tmp_path: Path) -> None:
    run_id = make_run(database_dsn, "old")
    kept = make_run(database_dsn, "young", days=1)
    environment = {
        "HEADRACE_GATEWAY_CLEANUP": json.dumps([{"experiment": EXPERIMENT, "max_age": "90d"}]),
        "HEADRACE_GATEWAY_PURGE_GRACE_S": "0",
    }
    deleted = "SELECT run_id FROM runs WHERE deleted_at IS NOT NULL"
    purged = "SELECT run_id FROM runs WHERE purged_at IS NOT NULL"
    with GatewayProcess(database_dsn, tmp_path, environment=environment):
        eventually(lambda: column(database_dsn, deleted) == {run_id})
    # Purges are looked for once a minute, first of all when a gateway starts.
    with GatewayProcess(database_dsn, tmp_path, environment=environment):
        eventually(lambda: column(database_dsn, purged) == {run_id})
    assert column(database_dsn, "SELECT run_id FROM runs WHERE purged_at IS NULL") == {kept}


def test_a_rule_that_makes_no_sense_stops_a_gateway(database_dsn: str, tmp_path: Path) -> None:
    for rules, says in (
        ('[{"experiment": "e"}]', "needs max_age or keep_top"),
        ('[{"experiment": "e", "age": "1d"}]', "age"),
        ("{", "cleanup"),
    ):
        environment = {"HEADRACE_GATEWAY_CLEANUP": rules}
        with pytest.raises(RuntimeError, match=says):
            GatewayProcess(database_dsn, tmp_path, environment=environment).start()


def test_a_late_sync_is_told_that_its_run_was_purged(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    run_id = make_run(gateway.dsn, "old")
    run = headrace.init(
        experiment=EXPERIMENT, run_id=run_id.hex, mode="offline", spool_dir=tmp_path / "spool"
    )
    run.log({"loss": 1.0}, step=1)
    run.finish()
    rule = (EXPERIMENT, "--max-age", "90d", "--execute", "--grace", "0s")
    cleanup(gateway.dsn, *rule)
    cleanup(gateway.dsn, *rule)
    synced = run_command(sync, "sync", tmp_path / "spool", "--address", gateway.address)
    assert synced.returncode == 1
    assert "purged" in synced.stdout + synced.stderr
