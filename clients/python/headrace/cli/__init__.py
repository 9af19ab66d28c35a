"""`headrace`: look at runs, compare them, and deliver what no sender delivers.

One file for each group of commands; what they share is in options.py (flags),
gateway.py (the connection, failures and exit codes) and output.py (tables and
JSON).
"""

from typing import Final

import typer

from headrace.cli import artifacts, experiments, login, metrics, runs, spools, tail

application: Final = typer.Typer(
    help="""Track training runs through a Headrace gateway.

    Runs are named by their id, its first digits, or their name. Every command
    that prints has --json for machines, one object a line.

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


def main() -> None:
    """The console script."""
    application()
