"""`headrace`: look at runs, compare them, and deliver what no sender delivers.

One file for each group of commands; what they share is in options.py (flags),
gateway.py (the connection, failures and exit codes) and output.py (tables and
JSON).
"""

import platform
from typing import Final

import typer

import headrace
from headrace.cli import artifacts, experiments, login, metrics, options, runs, spools, tail
from headrace.cli.output import print_json, print_line

application: Final = typer.Typer(
    help="""Track training runs through a Headrace gateway.

    Runs are named by their id, its first digits, or their name. Commands have
    --json for machines, one object a line; runs tag, runs rename, metrics plot,
    artifacts get and artifacts rm have not.

    Exit codes: 0 done; 1 something failed, and the message says what; 2 a wrong
    option, argument or setting; 3 a run, experiment, metric or artifact that does
    not exist; 4 the gateway refused the token or the permission; 5 no gateway
    answered.
    """,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
application.command()(login.login)
application.command()(spools.status)
application.add_typer(runs.application, name="runs")
application.add_typer(experiments.application, name="experiments")
application.add_typer(metrics.application, name="metrics")
application.add_typer(artifacts.application, name="artifacts")
application.command()(tail.tail)
application.command()(spools.sync)


@application.command()
def version(*, as_json: options.AsJson = False) -> None:
    """Print the version of this library and of the Python that runs it.

    headrace version --json
    """
    versions = {"headrace": headrace.__version__, "python": platform.python_version()}
    if as_json:
        print_json(versions)
    else:
        print_line(f"headrace {versions['headrace']}, Python {versions['python']}")


def main() -> None:
    """The console script."""
    application()
