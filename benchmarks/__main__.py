"""The command line of the benchmarks: `python -m benchmarks --help`."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from benchmarks import charts, harness, machine
from benchmarks.artifacts import measure_acks_beside_artifacts, measure_artifacts
from benchmarks.clients_ingest import measure_clients, measure_log_call
from benchmarks.compaction import measure_compaction
from benchmarks.copy_baselines import measure_copy, measure_executemany
from benchmarks.growth import measure_growth
from benchmarks.harness import Scenario
from benchmarks.load import Load
from benchmarks.peers.log_calls import measure_peer_log_calls
from benchmarks.peers.mlflow import measure_mlflow
from benchmarks.peers.victoria_metrics import measure_victoria_metrics
from benchmarks.processes import measure_workers
from benchmarks.raw_ingest import measure_paced, measure_saturated, measure_wide
from benchmarks.reads_during_writes import measure_reads
from benchmarks.results import Results
from benchmarks.row_baselines import measure_rows
from benchmarks.site import Site
from benchmarks.soak import MINUTE_S, measure_soak
from benchmarks.sweeps import (
    measure_batches,
    measure_disorder,
    measure_idle,
    measure_offered,
    measure_streams,
)
from benchmarks.tracker import measure_metadata, measure_search

SCENARIOS: Final = (
    Scenario(name="artifacts", summary="one large file by aioboto3, through the gateway, past it",
             measure=measure_artifacts, seconds=33, rounds=1, rounds_brief=1),
    Scenario(name="ack-artifacts", summary="acknowledgement latency alone and beside 16 uploads",
             measure=measure_acks_beside_artifacts, seconds=62, rounds=1, rounds_brief=0,
             apart=True),
    Scenario(name="copy", summary="raw binary COPY of rows, with and without an index",
             measure=measure_copy, seconds=9, seconds_brief=7, rounds=3, rounds_brief=2),
    Scenario(name="raw", summary="64 raw streams, 1,000-point batches, as fast as they go",
             measure=measure_saturated, seconds=6, rounds=3, rounds_brief=2),
    Scenario(name="victoria", summary="VictoriaMetrics: JSON lines and line protocol",
             measure=measure_victoria_metrics, seconds=7, seconds_brief=5,
             rounds=3, rounds_brief=2),
    Scenario(name="mlflow", summary="MLflow's server: batches, single points, up to 500 clients",
             measure=measure_mlflow, seconds=250, seconds_brief=30,
             rounds=1, rounds_brief=1),
    Scenario(name="wide", summary="one run that logs 50,000 keys a step",
             measure=measure_wide, seconds=6, rounds=2, rounds_brief=1),
    Scenario(name="executemany", summary="asyncpg's executemany into the indexed table",
             measure=measure_executemany, seconds=2, rounds=2, rounds_brief=0),
    Scenario(name="ack", summary="acknowledgement latency at a steady 100,000 points/s",
             measure=measure_paced, seconds=9, rounds=2, rounds_brief=1),
    Scenario(name="clients", summary="64 training processes through spool and sender",
             measure=measure_clients, seconds=27, rounds=1, rounds_brief=0),
    Scenario(name="log-call", summary="what one log() of 10 scalars costs the training thread",
             measure=measure_log_call, seconds=8, rounds=1, rounds_brief=1),
    Scenario(name="metadata", summary="calls that write ten params and tags each",
             measure=measure_metadata, seconds=4, rounds=2, rounds_brief=1),
    Scenario(name="compaction", summary="a million points logged one by one, merged and read",
             measure=measure_compaction, seconds=25, seconds_brief=11, rounds=1, rounds_brief=1,
             apart=True),
    Scenario(name="search", summary="typical pages among 100,000 runs with 45 values each",
             measure=measure_search, seconds=28, rounds=1, rounds_brief=1, apart=True),
    Scenario(name="idle", summary="5,000 idle streams, and one more writer",
             measure=measure_idle, seconds=30, seconds_brief=22, rounds=1, rounds_brief=1,
             apart=True),
    Scenario(name="growth", summary="ingest before and after a mass of stored points",
             measure=measure_growth, seconds=40, seconds_brief=17, rounds=1, rounds_brief=1),
    Scenario(name="rows", summary="copy_records_to_table; staging with ON CONFLICT",
             measure=measure_rows, seconds=5, rounds=1, rounds_brief=0),
    Scenario(name="log-call-peers", summary="a log call of MLflow, wandb, trackio, tensorboardX",
             measure=measure_peer_log_calls, seconds=30, rounds=1, rounds_brief=0),
    Scenario(name="streams", summary="1 to 5,000 saturated streams",
             measure=measure_streams, seconds=68, rounds=1, rounds_brief=0, apart=True),
    Scenario(name="batches", summary="messages of 1 to 1,000 points",
             measure=measure_batches, seconds=18, rounds=1, rounds_brief=0),
    Scenario(name="offered", summary="latency against offered load, up to the knee",
             measure=measure_offered, seconds=25, rounds=1, rounds_brief=0, apart=True),
    Scenario(name="disorder", summary="swapped, repeated and late steps beside ordered ones",
             measure=measure_disorder, seconds=23, rounds=1, rounds_brief=0),
    Scenario(name="workers", summary="one gateway process and two",
             measure=measure_workers, seconds=18, rounds=1, rounds_brief=0),
    Scenario(name="reads", summary="reading while 64 streams write",
             measure=measure_reads, seconds=18, rounds=1, rounds_brief=0),
)  # fmt: skip

DEFAULTS: Final = Load()
WORKERS: Final = min(2, os.cpu_count() or 1)
"""One process fills a core; the database and the load generator need the rest of the second."""
LATEST: Final = Path(__file__).parent / "results" / "latest.json"

application = typer.Typer(add_completion=False, rich_markup_mode="rich")


@application.command()
def main(  # noqa: PLR0917 - typer reads options from parameters
    scenario: Annotated[
        list[str] | None, typer.Option(help="Run only this one; repeat for more.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds, at most.")] = 3,
    streams: Annotated[int, typer.Option(min=1, help="Raw streams, and clients.")] = 64,
    raw_points: Annotated[
        int, typer.Option(min=1_000, help="Points of a round of raw streams.")
    ] = DEFAULTS.raw_points,
    copy_points: Annotated[
        int, typer.Option(min=1_280, help="Points of a round of COPY.")
    ] = DEFAULTS.copy_points,
    wide_points: Annotated[
        int, typer.Option(min=1, help="Points of a round of the wide run.")
    ] = DEFAULTS.wide_points,
    idle_streams: Annotated[
        int, typer.Option(min=1, help="Streams opened to weigh them.")
    ] = DEFAULTS.idle_streams,
    full: Annotated[
        bool, typer.Option("--full", help="Every scenario: 10 to 15 minutes on two cores.")
    ] = False,
    growth_points: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Points of the grown database, at least.",
            show_default="20 million; 10 without --full",
        ),
    ] = None,
    soak_minutes: Annotated[
        int, typer.Option(min=0, help="Only a soak of so many minutes.", show_default="no soak")
    ] = 0,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Gateway processes.", show_default="2, or 1 on a single core"),
    ] = WORKERS,
    output: Annotated[
        Path, typer.Option(help="The result; charts go beside it as .png and .svg.")
    ] = LATEST,
    listing: Annotated[bool, typer.Option("--list", help="Name the scenarios and stop.")] = False,
) -> None:
    """Measure Headrace on this machine, load generator included, beside what else there is.

      python -m benchmarks                       minutes: the figures that are promised

      python -m benchmarks --full                everything

      python -m benchmarks --scenario streams    one scenario, as in a full run

      python -m benchmarks --scenario growth --growth-points 200000000

      python -m benchmarks --soak-minutes 60

    Peers are measured where `make peers` installed them, and skipped with a word
    where not.

    Starts a PostgreSQL and a gateway of its own in a temporary directory,
    audits every round of ingest, prints medians and promises, and writes them
    with machine, versions and settings to a JSON file and a chart.

    Ends with status 1 when something could not be measured, and 0 otherwise:
    a figure that misses its promise is a result, not an error.
    """
    console = Console()
    if listing:
        for item in SCENARIOS:
            note = "" if item.rounds_brief else " [dim](--full)[/]"
            console.print(f"[bold]{item.name:16}[/] {item.summary}{note}")
        return
    known = {item.name: item for item in SCENARIOS}
    unknown = sorted(set(scenario or ()) - known.keys())
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(known)}")
    brief = not (full or scenario or soak_minutes)
    chosen = [
        item
        for item in SCENARIOS
        if (item.name in scenario if scenario else full or item.rounds_brief)
    ]
    if soak_minutes:
        chosen = [
            Scenario(name="soak", summary="minutes or hours of steady load", measure=measure_soak,
                     seconds=soak_minutes * MINUTE_S, rounds=1, rounds_brief=0)
        ]  # fmt: skip
    load = Load(
        brief=brief,
        streams=streams,
        raw_points=raw_points,
        copy_points=copy_points,
        wide_points=wide_points,
        idle_streams=idle_streams,
        growth_points=growth_points or DEFAULTS.growth_points // (2 if brief else 1),
        soak_minutes=soak_minutes,
        paced_s=DEFAULTS.paced_s / (2 if brief else 1),
        compaction_points=DEFAULTS.compaction_points // (4 if brief else 1),
    )
    results = asyncio.run(
        _measure(chosen, load=load, rounds=rounds, workers=workers, output=output, console=console)
    )
    results.print(console)
    drawn = [
        target
        for suffix in (".png", ".svg")
        if charts.draw(output, target := output.with_suffix(suffix))
    ]
    console.print("wrote", output, *drawn)
    if results.failures:
        raise typer.Exit(1)


async def _measure(
    chosen: list[Scenario],
    *,
    load: Load,
    rounds: int,
    workers: int,
    output: Path,
    console: Console,
) -> Results:
    described = machine.machine()
    async with Site.open(workers=workers) as site:
        results = Results(
            context={
                "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": described,
                "versions": machine.versions(),
                "postgres": await machine.database_settings(site.dsn),
                "parameters": {
                    "rounds": rounds,
                    "gateway_workers": workers,
                    "scenarios": [item.name for item in chosen],
                    **{name: getattr(load, name) for name in Load.__dataclass_fields__},
                },
            }
        )
        await harness.run(
            chosen,
            site=site,
            load=load,
            rounds=rounds,
            results=results,
            output=output,
            console=console,
        )
    return results


if __name__ == "__main__":
    application()
