"""`headrace experiments`: list, create, show, rename, delete, restore and export."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options
from headrace.cli.gateway import experiment_of, on_gateway, tags_of
from headrace.cli.output import print_json, print_line, print_table
from headrace.cli.runs import export_one
from headrace.client import Client
from headrace.experiments import ExperimentInfo

application = typer.Typer(help="Experiments: named sets of runs.", no_args_is_help=True)


@application.command("ls")
@on_gateway
def list_(
    client: Client,
    *,
    filter_: options.Filter = "",
    order_by: options.OrderBy = None,
    deleted: options.Deleted = False,
    as_json: options.AsJson = False,
) -> None:
    """List experiments by name.

    headrace experiments ls --filter "name LIKE 'search/%'"
    """
    found = client.search_experiments(
        filter_, order_by=order_by or (), visibility="deleted" if deleted else "active"
    )
    if as_json:
        for one in found:
            print_json(one)
        return
    print_table(
        ["id", "name", "created", "description"],
        [[f"#{one.experiment_id}", one.name, one.created_at, one.description] for one in found],
        none="no experiments",
    )


@application.command()
@on_gateway
def create(
    client: Client,
    *,
    name: Annotated[str, typer.Argument(help="By convention team/project/kind.")],
    description: Annotated[str, typer.Option(help="Free text.")] = "",
    tags: Annotated[list[str] | None, typer.Option("--tag", "-t", metavar="KEY=VALUE")] = None,
    exist_ok: Annotated[
        bool, typer.Option("--exist-ok", help="One that has the name is fine.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Create an experiment.

    headrace experiments create search/ranker/lambdamart --tag owner=ranking
    """
    pairs = tags_of(tags)
    made = client.create_experiment(name, description=description, tags=pairs, exist_ok=exist_ok)
    _tell(made, "", as_json=as_json)


@application.command()
@on_gateway
def show(
    client: Client,
    *,
    experiment: options.ExperimentName,
    as_json: options.AsJson = False,
) -> None:
    """Show an experiment, deleted or not.

    headrace experiments show search/ranker/lambdamart
    """
    found = client.experiment(experiment_of(experiment))
    if as_json:
        print_json(found)
        return
    lines: list[list[object]] = [
        ["name", found.name],
        ["created", found.created_at],
        ["changed", found.updated_at],
        ["deleted", found.deleted_at],
        ["description", found.description],
    ]
    lines += [[f"tag {key}", value] for key, value in found.tags.items()]
    rows = [line for line in lines if line[1]]
    print_table(["experiment", f"#{found.experiment_id}"], rows, none="")


@application.command()
@on_gateway
def rename(
    client: Client,
    *,
    experiment: options.ExperimentName,
    name: Annotated[str, typer.Argument(help="The new name.")],
    as_json: options.AsJson = False,
) -> None:
    """Give an experiment another name.

    headrace experiments rename search/ranker/lambdamart search/ranker/trees
    """
    _tell(client.update_experiment(experiment_of(experiment), name=name), "", as_json=as_json)


@application.command()
@on_gateway
def delete(
    client: Client,
    *,
    experiment: options.ExperimentName,
    as_json: options.AsJson = False,
) -> None:
    """Hide an experiment and its runs. `headrace experiments restore` takes it back.

    headrace experiments delete search/ranker/lambdamart
    """
    _tell(client.delete_experiment(experiment_of(experiment)), "deleted", as_json=as_json)


@application.command()
@on_gateway
def restore(
    client: Client,
    *,
    experiment: options.ExperimentName,
    as_json: options.AsJson = False,
) -> None:
    """Take a deletion back.

    headrace experiments restore search/ranker/lambdamart
    """
    _tell(client.restore_experiment(experiment_of(experiment)), "restored", as_json=as_json)


@application.command()
@on_gateway
def export(
    client: Client,
    *,
    experiment: options.ExperimentName,
    to: Annotated[Path, typer.Option(help="A directory; one Parquet file a run.")] = Path(),
    as_json: options.AsJson = False,
) -> None:
    """Write every run of an experiment as Parquet; see `headrace runs export`.

    headrace experiments export search/ranker/lambdamart --to exported/
    """
    for run in client.search_runs(experiments=[experiment_of(experiment)], include_data=False):
        export_one(client, run.run_id, to, as_json=as_json)


def _tell(experiment: ExperimentInfo, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(experiment)
    else:
        print_line(f"#{experiment.experiment_id} {experiment.name} {what}".rstrip())
