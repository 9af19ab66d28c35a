"""The command `headrace-gateway`: parses flags, calls, prints.

Exit statuses of every command: 0 done; 1 it failed, with the reason on
standard error; 2 the flags or settings are bad, with one line for each problem.
"""

import json
import sys

import typer

from gateway.cli.canary import canary_command
from gateway.cli.cleanup import cleanup_command
from gateway.cli.options import EPILOG, AsJson, gateway_version
from gateway.cli.serve import serve_command
from gateway.cli.stores import artifacts, doctor_command, migrate_command
from gateway.cli.tokens import tokens
from gateway.config import SettingsError
from gateway.domain.errors import HeadraceError
from gateway.embedded import EmbeddedError
from gateway.server import StartError
from gateway.store import migrate as migrations

app = typer.Typer(
    name="headrace-gateway",
    help="A gRPC tracking gateway: metrics of training jobs, exactly once, into PostgreSQL.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve", epilog=EPILOG)(serve_command)
app.command("migrate")(migrate_command)
app.command("doctor")(doctor_command)
app.command("cleanup")(cleanup_command)
app.command("canary")(canary_command)
app.add_typer(tokens, name="token")
app.add_typer(artifacts, name="artifacts")


@app.command()
def version(json_: AsJson = False) -> None:
    """Print the version of the gateway and of its database schema.

    headrace-gateway version --json
    """
    revision = migrations.migrations()[-1].revision
    if json_:
        typer.echo(json.dumps({"version": gateway_version(), "schema": revision}))
    else:
        typer.echo(f"headrace-gateway {gateway_version()}, schema {revision}")


def main() -> None:
    """Run the command; the entry point."""
    try:
        app()
    except SettingsError as error:
        for problem in error.problems:
            typer.echo(f"headrace-gateway: {problem}", err=True)
        sys.exit(2)
    except (StartError, EmbeddedError, HeadraceError) as error:
        typer.echo(f"headrace-gateway: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
