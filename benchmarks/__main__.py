"""The command line of the benchmarks: `python -m benchmarks --help`."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from benchmarks import charts, harness, machine
from benchmarks.artifacts import measure_acks_beside_artifacts, measure_artifacts
from benchmarks.clients_ingest import measure_clients, measure_log_call
from benchmarks.copy_baselines import measure_copy, measure_executemany
from benchmarks.harness import Scenario
from benchmarks.load import Load
from benchmarks.raw_ingest import measure_idle, measure_paced, measure_saturated, measure_wide
from benchmarks.results import Results
from benchmarks.site import Site

SCENARIOS: Final = (
    # First, in a fresh process: memory that busier scenarios freed would hide the streams.
    Scenario(name="artifacts", summary="one large file by aioboto3, through the gateway, past it",
             measure=measure_artifacts),
    Scenario(name="ack-artifacts", summary="acknowledgement latency alone and beside 16 uploads",
             measure=measure_acks_beside_artifacts, rounds_max=2),
    Scenario(name="idle", summary="memory and connections with 1,000 idle streams",
             measure=measure_idle, rounds_max=1),
    Scenario(name="copy", summary="raw binary COPY of rows, with and without an index",
             measure=measure_copy),
    Scenario(name="raw", summary="64 raw streams, 1,000-point batches, as fast as they go",
             measure=measure_saturated),
    Scenario(name="wide", summary="one run that logs 50,000 keys a step", measure=measure_wide),
    Scenario(name="executemany", summary="asyncpg's executemany into the indexed table",
             measure=measure_executemany),
    Scenario(name="ack", summary="acknowledgement latency at a steady 100,000 points/s",
             measure=measure_paced, rounds_max=2),
    Scenario(name="clients", summary="64 training processes through spool and sender",
             measure=measure_clients, rounds_max=2),
    Scenario(name="log-call", summary="what one log() of 10 scalars costs the training thread",
             measure=measure_log_call, rounds_max=2),
)  # fmt: skip

DEFAULTS: Final = Load()
LATEST: Final = Path(__file__).parent / "results" / "latest.json"

application = typer.Typer(add_completion=False, rich_markup_mode="rich")


@application.command()
def main(  # noqa: PLR0917 - typer reads options from parameters
    scenario: Annotated[
        list[str] | None, typer.Option(help="Run only this one; repeat for more.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 3,
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
    workers: Annotated[int, typer.Option(min=1, help="Gateway processes.")] = 1,
    output: Annotated[
        Path, typer.Option(help="The result; charts go beside it as .png and .svg.")
    ] = LATEST,
    listing: Annotated[bool, typer.Option("--list", help="Name the scenarios and stop.")] = False,
) -> None:
    """Measure Headrace beside raw PostgreSQL on this machine, load generator included.

    Starts a PostgreSQL and a gateway of its own in a temporary directory,
    audits every round of ingest, prints medians and promises, and writes them
    with machine, versions and settings to a JSON file and a chart.

    Ends with status 1 when something could not be measured, and 0 otherwise:
    a figure that misses its promise is a result, not an error.
    """
    console = Console()
    if listing:
        for item in SCENARIOS:
            console.print(f"[bold]{item.name:12}[/] {item.summary}")
        return
    known = {item.name: item for item in SCENARIOS}
    unknown = sorted(set(scenario or ()) - known.keys())
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(known)}")
    chosen = [item for item in SCENARIOS if not scenario or item.name in scenario]
    load = Load(
        streams=streams,
        raw_points=raw_points,
        copy_points=copy_points,
        wide_points=wide_points,
        idle_streams=idle_streams,
    )
    results = asyncio.run(
        _measure(chosen, load=load, rounds=rounds, workers=workers, output=output, console=console)
    )
    for suffix in (".png", ".svg"):
        charts.draw(output, output.with_suffix(suffix))
    results.print(console)
    console.print(f"wrote {output} and its charts")
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
