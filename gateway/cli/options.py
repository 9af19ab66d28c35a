"""What the commands share: options, settings, and ways to the database and the stores."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated, Final

import typer

from gateway.config import Settings, SettingsError, load
from gateway.embedded import EmbeddedPostgres, EmbeddedS3, reach, reach_stores
from gateway.store.connections import Database

EPILOG: Final = """
Every setting is a variable HEADRACE_GATEWAY_<NAME> and a key of the TOML file; `serve` takes each
by a flag of its own or by --set NAME=VALUE. Flags win over variables, variables over the file.

Exit status: 0 done, 1 failed, 2 bad flags or settings.
"""

Config = Annotated[
    Path | None,
    typer.Option(help="TOML file of settings.", show_default="headrace.toml if there is one"),
]
Dsn = Annotated[
    str | None, typer.Option(help="PostgreSQL: postgresql://user:password@host:5432/name")
]
EmbeddedDirectory = Annotated[
    Path | None,
    typer.Option(
        "--embedded",
        metavar="DIR",
        help="Start PostgreSQL and an S3 server of their own; their data stays in DIR.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def gateway_version() -> str:
    """Return the version of the installed distribution."""
    return distribution_version("headrace-gateway")


def settings_of(
    flags: dict[str, object], config: Path | None, assigned: dict[str, str] | None = None
) -> Settings:
    """Return the settings of a command, which all need a database; raise SettingsError.

    Args:
        flags: what was given by flags of their own, by name; None is not given.
        config: the TOML file.
        assigned: what was given by `--set NAME=VALUE`, which wins over a flag.
    """
    file = config or os.environ.get("HEADRACE_GATEWAY_CONFIG")
    # A flag that says where the database is replaces what the environment says, whichever way.
    environment = dict(os.environ)
    given = {**flags, **(assigned or {})}
    if given.get("dsn") or given.get("embedded"):
        for name in ("DSN", "EMBEDDED"):
            environment.pop(f"HEADRACE_GATEWAY_{name}", None)
    settings = load(
        flags=flags,
        assigned=assigned or {},
        environment=environment,
        file=Path(file) if file else None,
    )
    if not settings.dsn and settings.embedded is None:
        raise SettingsError(
            ["which database? set --dsn or HEADRACE_GATEWAY_DSN, or use --embedded DIR"]
        )
    return settings


@contextlib.contextmanager
def dsn_of(settings: Settings) -> Iterator[str]:
    """Yield the database's DSN; an embedded one is started, or found running."""
    if settings.embedded is None:
        yield settings.dsn
    else:
        with reach(settings.embedded) as dsn:
            yield dsn


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Settings]:
    """Yield settings whose stores run: the embedded ones are started, or found running."""
    if settings.embedded is None:
        yield settings
    else:
        with reach_stores(settings.embedded) as (postgres, s3):
            yield with_stores(settings, postgres, s3)


@contextlib.asynccontextmanager
async def database_at(dsn: str) -> AsyncIterator[Database]:
    """Connect for one command: a single connection, outside the gateway's budget."""
    database = await Database.connect(
        dsn, ingest_connections=0, query_connections=1, application_name="headrace-cli"
    )
    try:
        yield database
    finally:
        await database.close()


def with_stores(settings: Settings, postgres: EmbeddedPostgres, s3: EmbeddedS3) -> Settings:
    """Return the settings with the addresses and keys of the embedded stores."""
    return settings.model_copy(
        update={
            "dsn": postgres.socket_dsn,
            "s3_bucket": s3.bucket,
            "s3_endpoint_url": s3.endpoint_url,
            "s3_access_key_id": s3.access_key_id,
            "s3_secret_access_key": s3.secret_access_key,
        }
    )
