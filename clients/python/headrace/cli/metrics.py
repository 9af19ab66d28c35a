"""`headrace metrics`: series of a run as a table, as points or as a plot."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options
from headrace.cli.gateway import on_gateway
from headrace.cli.output import print_json, print_line, print_table
from headrace.client import Client
from headrace.columns import SeriesColumns
from headrace.plots import image_plot, terminal_plot

application = typer.Typer(help="The metrics of runs.", no_args_is_help=True)

Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Default: all.")]
Ranks = Annotated[list[int] | None, typer.Option("--rank", help="Only these; default: all.")]
Smooth = Annotated[
    int, typer.Option("--max-points", min=4, help="Of each series, down-sampled; extremes stay.")
]


@application.command()
@on_gateway
def show(
    client: Client,
    *,
    run: options.RunName,
    keys: Keys = None,
    ranks: Ranks = None,
    points: Annotated[bool, typer.Option("--points", help="Every point.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the last, least and greatest value of series, or with --points every point.

    headrace metrics show brisk-heron-417

    headrace metrics show brisk-heron-417 train/loss --points --json
    """
    run_id = client.find_run(run).run_id
    if points:
        _show_points(_read(client, run_id, keys, ranks), as_json=as_json)
        return
    found = [
        series
        for series in client.series(run_id)
        if (not keys or series.key in keys) and (not ranks or series.rank in ranks)
    ]
    _refuse_unknown(run, keys, {series.key for series in found})
    if as_json:
        for series in found:
            print_json(series)
        return
    print_table(
        ["metric", "rank", "last", "at step", "min", "max", "points"],
        [
            [
                one.key,
                one.rank,
                one.last_value,
                one.last_step,
                one.min_value,
                one.max_value,
                f"{one.point_count:,}",
            ]
            for one in found
        ],
        none="no metrics",
    )


@application.command()
@on_gateway
def plot(
    client: Client,
    *,
    run: options.RunName,
    keys: Annotated[list[str], typer.Argument(metavar="KEY", help="The metrics.")],
    ranks: Ranks = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .png, .svg or .pdf file instead of the terminal."),
    ] = None,
    log_scale: Annotated[bool, typer.Option("--log", help="Logarithmic values.")] = False,
    max_points: Smooth = 1_000,
) -> None:
    """Plot metrics over their steps, in the terminal or into a file (with the extra `plots`).

    headrace metrics plot brisk-heron-417 train/loss val/loss --log

    headrace metrics plot brisk-heron-417 train/loss --output loss.svg
    """
    found = client.find_run(run)
    series = _read(client, found.run_id, keys, ranks, max_points=max_points)
    if output is not None:
        image_plot(series, output, title=found.name, log_scale=log_scale)
        print_line(str(output))
        return
    width, height = shutil.get_terminal_size((100, 24))
    print_line(
        terminal_plot(
            series,
            title=found.name,
            log_scale=log_scale,
            width=width,
            height=max(10, min(height - 2, 30)),
            colours=sys.stdout.isatty(),
        )
    )


def _read(
    client: Client,
    run_id: str,
    keys: Sequence[str] | None,
    ranks: Sequence[int] | None,
    *,
    max_points: int = 0,
) -> list[SeriesColumns]:
    columns = client.read(run_id, keys or (), ranks=ranks or (), max_points=max_points)
    found = list(columns)
    _refuse_unknown(run_id, keys, {series.key for series in found})
    return found


def _refuse_unknown(run: str, keys: Sequence[str] | None, known: set[str]) -> None:
    missing = [key for key in keys or () if key not in known]
    if missing:
        raise LookupError(
            f"run {run} has no metric {missing[0]!r}; `headrace metrics show {run}` lists them"
        )


def _show_points(found: list[SeriesColumns], *, as_json: bool) -> None:
    if not as_json:
        rows = (
            [series.key, series.rank, step, float(value)]
            for series in found
            for step, value in zip(series.step.tolist(), series.value.tolist(), strict=True)
        )
        print_table(["metric", "rank", "step", "value"], rows, none="no points")
        return
    for series in found:
        print_json(
            {
                "key": series.key,
                "rank": series.rank,
                "step": series.step.tolist(),
                "value": series.value.tolist(),
            }
        )
