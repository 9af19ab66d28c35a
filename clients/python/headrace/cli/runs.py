"""`headrace runs`: list, show, compare, tag, delete, restore, export and import runs."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options
from headrace.cli.gateway import ExitCode, experiment_of, fail, on_gateway, tags_of
from headrace.cli.output import duration, print_json, print_line, print_table, shown, state
from headrace.client import Client
from headrace.run_info import RunInfo

application = typer.Typer(help="Runs.", no_args_is_help=True)

_ID_DIGITS = 12
"""Of a run's id in tables: 48 bits of time, unique in practice, and enough to name it."""


@application.command("ls")
@on_gateway
def list_(
    client: Client,
    *,
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT", help="Names, or ids as #ID; default: all."),
    ] = None,
    filter_: options.Filter = "",
    order_by: options.OrderBy = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The most runs.")] = 20,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", "-c", help="Also params.KEY, tags.KEY, metrics.KEY, summary.KEY."),
    ] = None,
    deleted: options.Deleted = False,
    as_json: options.AsJson = False,
) -> None:
    """List runs, newest first.

    headrace runs ls search/ranker/lambdamart

    headrace runs ls --filter "metrics.loss < 0.3" --order-by "metrics.loss ASC" -c params.depth
    """
    for column in columns or ():
        if column.partition(".")[0] not in {"params", "tags", "metrics", "summary"}:
            raise fail(
                f"--column is {column!r}; it must be params.KEY, tags.KEY, metrics.KEY or "
                "summary.KEY",
                ExitCode.USAGE,
            )
    found = client.search_runs(
        filter_,
        experiments=[experiment_of(name) for name in experiments or ()],
        order_by=order_by or (),
        visibility="deleted" if deleted else "active",
        limit=limit,
    )
    if as_json:
        for run in found:
            print_json(run)
        return
    print_table(
        ["run", "name", "experiment", "state", "started", "took", *(columns or ())],
        [
            [
                run.run_id[:_ID_DIGITS],
                run.name,
                run.experiment,
                state(run.state),
                run.started_at,
                duration(run.started_at, run.ended_at),
                *(_cell(run, column) for column in columns or ()),
            ]
            for run in found
        ],
        none="no runs",
    )


@application.command()
@on_gateway
def show(
    client: Client,
    *,
    run: options.RunName,
    as_json: options.AsJson = False,
) -> None:
    """Show all that is known of a run.

    headrace runs show brisk-heron-417

    headrace runs show 0192ab --json
    """
    found = client.find_run(run)
    if as_json:
        print_json(found)
        return
    print_table(["run", found.run_id], _head(found), none="")
    for title, values in (
        ("param", found.params),
        ("tag", found.tags),
        ("summary", found.summary),
        ("fact", found.facts),
    ):
        if values:
            print_line("")
            print_table([title, "value"], list(values.items()), none="")
    if found.metrics:
        print_line("")
        print_table(
            ["metric", "last", "at step", "min", "max", "points"],
            [
                [key, one.last, one.last_step, one.min, one.max, f"{one.point_count:,}"]
                for key, one in found.metrics.items()
            ],
            none="",
        )
    if found.datasets:
        print_line("")
        print_table(
            ["dataset", "digest", "context", "source"],
            [[one.name, one.digest, one.context, one.source] for one in found.datasets],
            none="",
        )


@application.command()
@on_gateway
def compare(
    client: Client,
    *,
    runs: options.RunNames,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="Only these; default: all.")
    ] = None,
    differing: Annotated[
        bool, typer.Option("--differing", help="Only params in which the runs differ.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Put runs side by side: params, last, least and greatest metrics, summary values.

    headrace runs compare brisk-heron-417 0192cd --differing
    """
    chosen = [client.find_run(run).run_id for run in runs]
    table = client.compare(chosen, metrics=metrics or (), differing=differing)
    if as_json:
        for row in table.rows:
            print_json(row)
        return
    columns = [name for name in table.columns if name not in {"run_id", "name"}]
    print_table(
        ["", *(row["name"] for row in table.rows)],
        [
            ["run", *(row["run_id"][:_ID_DIGITS] for row in table.rows)],
            *([name, *(row.get(name) for row in table.rows)] for name in columns),
        ],
        none="",
    )


@application.command()
@on_gateway
def tag(
    client: Client,
    *,
    run: options.RunName,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Tags to set.")
    ] = None,
    delete_keys: Annotated[
        list[str] | None, typer.Option("--delete", "-d", metavar="KEY", help="Tags to delete.")
    ] = None,
) -> None:
    """Set and delete tags of a run.

    headrace runs tag brisk-heron-417 stage=review --delete draft
    """
    pairs = tags_of(tags)
    run_id = client.find_run(run).run_id
    client.delete_tags(run_id, *(delete_keys or ()))
    client.set_tags(run_id, pairs)
    print_line(f"{run_id}: {len(pairs)} set, {len(delete_keys or ())} deleted")


@application.command()
@on_gateway
def rename(
    client: Client,
    *,
    run: options.RunName,
    name: Annotated[str, typer.Argument(help="The new name.")],
) -> None:
    """Give a run another name.

    headrace runs rename brisk-heron-417 baseline
    """
    print_line(client.update_run(client.find_run(run).run_id, name=name).name)


@application.command()
@on_gateway
def delete(
    client: Client,
    *,
    runs: options.RunNames,
    as_json: options.AsJson = False,
) -> None:
    """Hide runs from searches. `headrace runs restore` takes it back until they are purged.

    headrace runs delete brisk-heron-417 0192cd
    """
    for name in runs:
        deleted = client.delete_run(client.find_run(name).run_id)
        _tell(deleted, "deleted", as_json=as_json)


@application.command()
@on_gateway
def restore(
    client: Client,
    *,
    runs: options.RunNames,
    as_json: options.AsJson = False,
) -> None:
    """Take deletions back. Names count here for deleted runs too.

    headrace runs restore brisk-heron-417
    """
    for name in runs:
        restored = client.restore_run(client.find_run(name, visibility="all").run_id)
        _tell(restored, "restored", as_json=as_json)


@application.command()
@on_gateway
def export(
    client: Client,
    *,
    runs: options.RunNames,
    to: Annotated[Path, typer.Option(help="A directory; one Parquet file a run.")] = Path(),
    as_json: options.AsJson = False,
) -> None:
    """Write runs as Parquet: points as columns, everything else in the file's metadata.

    headrace runs export brisk-heron-417 --to exported/
    """
    for name in runs:
        export_one(client, client.find_run(name).run_id, to, as_json=as_json)


@application.command("import")
@on_gateway
def import_(
    client: Client,
    *,
    files: Annotated[list[Path], typer.Argument(exists=True, help="What `export` wrote.")],
    experiment: Annotated[
        str | None, typer.Option(help="Into this experiment; default: the original's.")
    ] = None,
    new_id: Annotated[
        bool, typer.Option("--new-id", help="Under new run ids, beside the originals.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Read what `export` wrote. Repeat it to go on after an interruption (not with --new-id).

    headrace runs import exported/*.parquet
    """
    for file in files:
        stored = client.import_run(file, experiment=experiment, new_id=new_id)
        if as_json:
            print_json(stored)
        else:
            print_line(f"{stored.run_id} {stored.name} ({stored.experiment})")


def export_one(client: Client, run_id: str, directory: Path, *, as_json: bool) -> None:
    """Export a run and say where."""
    directory.mkdir(parents=True, exist_ok=True)
    path = client.export_run(run_id, directory / f"{run_id}.parquet")
    if as_json:
        print_json({"run_id": run_id, "file": str(path), "bytes": path.stat().st_size})
    else:
        print_line(str(path))


def _head(run: RunInfo) -> list[list[object]]:
    """Key and value of what every run has, without what is empty."""
    attempts = ", ".join(
        str(one.attempt)
        if one.resume_step is None
        else f"{one.attempt} (from step {one.resume_step})"
        for one in run.attempts
    )
    lines: list[list[object]] = [
        ["name", run.name],
        ["experiment", f"{run.experiment} (#{run.experiment_id})"],
        ["state", state(run.state)],
        ["parent", run.parent_run_id],
        ["started", run.started_at],
        ["ended", run.ended_at],
        ["took", duration(run.started_at, run.ended_at)],
        ["deleted", run.deleted_at],
        ["user", run.user_name],
        ["host", run.host],
        ["git commit", run.git_commit],
        ["entry point", run.entry_point],
        ["attempts", attempts],
        ["notes", run.notes],
    ]
    return [line for line in lines if shown(line[1])]


def _cell(run: RunInfo, column: str) -> object:
    kind, _, key = column.partition(".")
    if kind == "metrics":
        metric = run.metrics.get(key)
        return None if metric is None else metric.last
    values = {"params": run.params, "tags": run.tags, "summary": run.summary}[kind]
    return values.get(key)


def _tell(run: RunInfo, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(run)
    else:
        print_line(f"{run.run_id} {run.name} {what}")
