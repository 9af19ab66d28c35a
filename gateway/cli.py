"""The command `headrace-gateway`: parses flags, calls, prints.

Exit statuses of every command: 0 done; 1 it failed, with the reason on
standard error; 2 the flags or settings are bad, with one line for each problem.
"""

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from gateway import doctor
from gateway.artifacts.cleanup import Report
from gateway.artifacts.wiring import open_artifacts
from gateway.config import Settings, SettingsError, load
from gateway.domain.errors import HeadraceError
from gateway.embedded import (
    Embedded,
    EmbeddedError,
    EmbeddedPostgres,
    EmbeddedS3,
    reach,
    reach_stores,
)
from gateway.server import StartError, prepare_database, serve
from gateway.store import migrate as migrations
from gateway.store.connections import Database
from gateway.store.tokens import TokenStore
from gateway.telemetry import configure_logs
from gateway.workers import Supervisor, start_metrics

_EPILOG: Final = """
Every setting is a flag, a variable HEADRACE_GATEWAY_<NAME> and a key of the TOML file; flags win
over variables, variables over the file. Exit status: 0 done, 1 failed, 2 bad flags or settings.
"""
_LIFETIME: Final = re.compile(r"(\d+)([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

app = typer.Typer(
    name="headrace-gateway",
    help="A gRPC tracking gateway: metrics of training jobs, exactly once, into PostgreSQL.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tokens = typer.Typer(
    help="Make, list and revoke the tokens that callers present.", no_args_is_help=True
)
app.add_typer(tokens, name="token")
artifacts = typer.Typer(help="Look after the bucket of artifacts.", no_args_is_help=True)
app.add_typer(artifacts, name="artifacts")

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


@app.command("serve", epilog=_EPILOG)
def serve_command(
    *,
    config: Config = None,
    listen: Annotated[
        str | None,
        typer.Option(help="gRPC address; port 0 takes a free one.", show_default="127.0.0.1:7420"),
    ] = None,
    metrics_listen: Annotated[
        str | None,
        typer.Option(help="Prometheus address, or `off`.", show_default="127.0.0.1:7421"),
    ] = None,
    dsn: Dsn = None,
    embedded: EmbeddedDirectory = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share the port.", show_default="1")
    ] = None,
    ingest_connections: Annotated[
        int | None,
        typer.Option(help="Database connections that commit, of all workers.", show_default="2"),
    ] = None,
    query_connections: Annotated[
        int | None,
        typer.Option(help="Database connections for the rest, of all workers.", show_default="4"),
    ] = None,
    auth: Annotated[
        bool | None,
        typer.Option(
            "--auth/--no-auth", help="Whether calls need a token.", show_default="off on loopback"
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM chain; re-read when it changes.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM authorities that clients' certificates must be of.")
    ] = None,
    drain_deadline_s: Annotated[
        float | None,
        typer.Option(help="How long a stop waits for streams and commits.", show_default="30"),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="console or json.", show_default="console")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", show_default="info")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; may be repeated."),
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain; a second signal stops at once.

    Migrates the database first.

      headrace-gateway serve --embedded ./data          everything on this machine

      headrace-gateway serve --dsn postgresql://tracker@db/headrace --workers 2

      headrace-gateway serve --embedded ./data --set pending_bytes_max=512MiB
    """
    flags: dict[str, object] = {
        "listen": listen,
        "metrics_listen": metrics_listen,
        "dsn": dsn,
        "embedded": embedded,
        "workers": workers,
        "ingest_connections": ingest_connections,
        "query_connections": query_connections,
        "auth": auth,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "drain_deadline_s": drain_deadline_s,
        "log_format": log_format,
        "log_level": log_level,
    }
    for pair in set_ or []:
        name, separator, value = pair.partition("=")
        if not separator:
            raise SettingsError([f"--set {pair}: expected NAME=VALUE"])
        flags[name.strip()] = value.strip()
    settings = _settings(flags, config)
    configure_logs(format_=settings.log_format, level=settings.log_level)
    sys.exit(0 if _serve(settings) else 1)


def _serve(settings: Settings) -> bool:
    with contextlib.ExitStack() as stack:
        embedded = None
        if settings.embedded is not None:
            embedded = stack.enter_context(Embedded(settings.embedded))
            settings = _with_stores(settings, embedded.postgres, embedded.s3)

        def ready(address: str, metrics_url: str) -> None:
            typer.echo(_ready_line(settings, address, metrics_url))

        async def alone() -> bool:
            await prepare_database(settings)
            url = start_metrics(settings, directory=None)
            host = settings.listen.rpartition(":")[0]
            return await serve(
                settings, share_port=False, on_ready=lambda port: ready(f"{host}:{port}", url)
            )

        async def supervised() -> bool:
            await prepare_database(settings)
            return await Supervisor(settings, embedded=embedded).run(ready)

        one = settings.workers == 1 and embedded is None
        return asyncio.run(alone() if one else supervised())


def _with_stores(settings: Settings, postgres: EmbeddedPostgres, s3: EmbeddedS3) -> Settings:
    return settings.model_copy(
        update={
            "dsn": postgres.socket_dsn,
            "s3_bucket": s3.bucket,
            "s3_endpoint_url": s3.endpoint_url,
            "s3_access_key_id": s3.access_key_id,
            "s3_secret_access_key": s3.secret_access_key,
        }
    )


def _ready_line(settings: Settings, address: str, metrics_url: str) -> str:
    return (
        f"headrace-gateway {_version()}: gRPC on {address}, metrics on {metrics_url or 'nothing'},"
        f" {settings.workers} worker{'s' * (settings.workers > 1)},"
        f" database connections {settings.ingest_connections} ingest"
        f" + {settings.query_connections} query,"
        f" TLS {'on' if settings.tls else 'off'},"
        f" tokens {'required' if settings.auth_required else 'not required'}"
    )


@app.command()
def migrate(
    config: Config = None,
    dsn: Dsn = None,
    embedded: EmbeddedDirectory = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 if any is pending.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Apply pending migrations, as `serve` does when it starts.

    headrace-gateway migrate --dsn postgresql://owner@db/headrace

    headrace-gateway migrate --check --json
    """
    settings = _settings({"dsn": dsn, "embedded": embedded}, config)

    async def pending(at: str) -> list[migrations.Migration]:
        async with _database(at) as database, database.query() as connection:
            return await migrations.pending(connection)

    with _dsn(settings) as at:
        work = pending(at) if check else migrations.migrate(at)
        names = [migration.name for migration in asyncio.run(work)]
    if json_:
        typer.echo(json.dumps({"pending" if check else "applied": names}))
    else:
        verb = "pending" if check else "applied"
        typer.echo(f"{verb}: {', '.join(names)}" if names else "the database is up to date")
    if check and names:
        raise typer.Exit(1)


@tokens.command("create")
def token_create(
    *,
    name: Annotated[str, typer.Argument(help="Whom it is for, as shown in logs and lists.")],
    workspace: Annotated[
        str, typer.Option(help="What it sees; made if there is none of this name.")
    ] = "default",
    read_only: Annotated[bool, typer.Option("--read-only", help="It may read only.")] = False,
    expires_in: Annotated[
        str | None, typer.Option(metavar="90d", help="Lifetime: a number and s, m, h or d.")
    ] = None,
    config: Config = None,
    dsn: Dsn = None,
    embedded: EmbeddedDirectory = None,
    json_: AsJson = False,
) -> None:
    """Make a token and print it, once: the database keeps its hash only.

    headrace-gateway token create alice --expires-in 90d

    headrace-gateway token create dashboard --read-only --workspace vision --json
    """
    lifetime_s = _lifetime_s(expires_in)

    async def create(store: TokenStore) -> tuple[int, str]:
        return await store.create(
            workspace=workspace, name=name, can_write=not read_only, lifetime_s=lifetime_s
        )

    token_id, text = _with_tokens(create, config, dsn, embedded)
    if json_:
        typer.echo(json.dumps({"token_id": token_id, "token": text}))
    else:
        typer.echo(text)
        typer.echo(f"token {token_id} for {name}; it is not shown again", err=True)


@tokens.command("ls")
def token_list(
    config: Config = None,
    dsn: Dsn = None,
    embedded: EmbeddedDirectory = None,
    json_: AsJson = False,
) -> None:
    """List tokens, without their texts."""

    async def list_all(store: TokenStore) -> list[Any]:
        return await store.list()

    found = _with_tokens(list_all, config, dsn, embedded)
    if json_:
        fields = ("token_id", "workspace", "name", "can_write")
        times = ("created_at", "expires_at", "revoked_at")
        typer.echo(
            json.dumps(
                [
                    {field: getattr(token, field) for field in fields}
                    | {field: _time(getattr(token, field)) for field in times}
                    for token in found
                ]
            )
        )
        return
    table = Table("id", "name", "workspace", "may", "created", "expires", "revoked")
    for token in found:
        table.add_row(
            str(token.token_id),
            token.name,
            token.workspace,
            "write" if token.can_write else "read",
            _time(token.created_at),
            _time(token.expires_at),
            _time(token.revoked_at),
        )
    Console().print(table)


@tokens.command("revoke")
def token_revoke(
    token_id: Annotated[int, typer.Argument(help="As `token ls` shows it.")],
    config: Config = None,
    dsn: Dsn = None,
    embedded: EmbeddedDirectory = None,
) -> None:
    """Revoke a token for ever; running gateways notice within seconds."""

    async def revoke(store: TokenStore) -> bool:
        return await store.revoke(token_id)

    if not _with_tokens(revoke, config, dsn, embedded):
        typer.echo(f"there is no token {token_id}", err=True)
        raise typer.Exit(1)
    typer.echo(f"token {token_id} is revoked")


@app.command("doctor")
def doctor_command(
    config: Config = None,
    dsn: Dsn = None,
    embedded: EmbeddedDirectory = None,
    json_: AsJson = False,
) -> None:
    """Check database and bucket as the gateway uses them, and say what to change.

    Exits with 1 if anything is bad.

    headrace-gateway doctor --dsn postgresql://tracker@db/headrace
    """
    with _running(_settings({"dsn": dsn, "embedded": embedded}, config)) as settings:
        findings = asyncio.run(doctor.diagnose(settings))
    if json_:
        typer.echo(doctor.as_json(findings))
    else:
        Console().print(doctor.as_table(findings))
    if not doctor.healthy(findings):
        raise typer.Exit(1)


@artifacts.command("reconcile")
def artifacts_reconcile(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--remove", help="Only report, or remove orphans too.")
    ] = True,
    older_than_s: Annotated[
        float, typer.Option(help="Leave younger objects alone, in seconds.")
    ] = 86_400.0,
    config: Config = None,
    dsn: Dsn = None,
    embedded: EmbeddedDirectory = None,
    json_: AsJson = False,
) -> None:
    """Compare the bucket with the database: orphans, and content whose object is missing.

    Safe beside running gateways. Exits with 1 if content is missing.

    headrace-gateway artifacts reconcile --embedded ./data --remove
    """

    async def compare(settings: Settings) -> Report:
        await migrations.migrate(settings.dsn)
        async with (
            _database(settings.dsn) as database,
            open_artifacts(settings, database) as opened,
        ):
            if opened is None:
                raise SettingsError(["which bucket? set HEADRACE_GATEWAY_S3_BUCKET"])
            return await opened.cleanup.reconcile(dry_run=dry_run, older_than_s=older_than_s)

    with _running(_settings({"dsn": dsn, "embedded": embedded}, config)) as settings:
        report = asyncio.run(compare(settings))
    if json_:
        typer.echo(json.dumps(asdict(report)))
    else:
        for key in (*report.orphan_objects, *report.orphan_uploads):
            typer.echo(f"{'removed' if report.removed else 'orphan'}: {key}")
        for key in report.missing_objects:
            typer.echo(f"missing: {key}")
        typer.echo(
            f"{report.orphan_object_count} orphan objects, {report.orphan_upload_count} orphan"
            f" uploads{' removed' if report.removed else ' (use --remove)'},"
            f" {report.missing_object_count} objects missing"
        )
    if report.missing_object_count:
        raise typer.Exit(1)


@app.command()
def version(json_: AsJson = False) -> None:
    """Print the version of the gateway and of its database schema."""
    revision = migrations.migrations()[-1].revision
    if json_:
        typer.echo(json.dumps({"version": _version(), "schema": revision}))
    else:
        typer.echo(f"headrace-gateway {_version()}, schema {revision}")


def _version() -> str:
    return distribution_version("headrace-gateway")


def _settings(flags: dict[str, object], config: Path | None) -> Settings:
    file = config or os.environ.get("HEADRACE_GATEWAY_CONFIG")
    # A flag that says where the database is replaces what the environment says, whichever way.
    environment = dict(os.environ)
    if flags.get("dsn") or flags.get("embedded"):
        for name in ("DSN", "EMBEDDED"):
            environment.pop(f"HEADRACE_GATEWAY_{name}", None)
    settings = load(flags=flags, environment=environment, file=Path(file) if file else None)
    if not settings.dsn and settings.embedded is None:
        raise SettingsError(
            ["which database? set --dsn or HEADRACE_GATEWAY_DSN, or use --embedded DIR"]
        )
    return settings


@contextlib.contextmanager
def _dsn(settings: Settings) -> Iterator[str]:
    if settings.embedded is None:
        yield settings.dsn
    else:
        with reach(settings.embedded) as dsn:
            yield dsn


@contextlib.contextmanager
def _running(settings: Settings) -> Iterator[Settings]:
    """Yield settings whose stores run: the embedded ones are started, or found running."""
    if settings.embedded is None:
        yield settings
    else:
        with reach_stores(settings.embedded) as (postgres, s3):
            yield _with_stores(settings, postgres, s3)


@contextlib.asynccontextmanager
async def _database(dsn: str) -> Any:
    database = await Database.connect(
        dsn, ingest_connections=0, query_connections=1, application_name="headrace-cli"
    )
    try:
        yield database
    finally:
        await database.close()


def _with_tokens(work: Any, config: Path | None, dsn: str | None, embedded: Path | None) -> Any:
    settings = _settings({"dsn": dsn, "embedded": embedded}, config)

    async def run(at: str) -> Any:
        await migrations.migrate(at)
        async with _database(at) as database:
            return await work(TokenStore(database))

    with _dsn(settings) as at:
        return asyncio.run(run(at))


def _lifetime_s(text: str | None) -> float | None:
    if text is None:
        return None
    match = _LIFETIME.fullmatch(text)
    if match is None:
        raise SettingsError([f"--expires-in {text}: expected a number and s, m, h or d, as 90d"])
    return int(match[1]) * _SECONDS[match[2]]


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")


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


if __name__ == "__main__":
    main()
