"""`headrace-gateway serve`."""

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from gateway.cli.options import (
    Config,
    Dsn,
    EmbeddedDirectory,
    gateway_version,
    settings_of,
    with_stores,
)
from gateway.config import Settings, SettingsError
from gateway.embedded import Embedded
from gateway.server import prepare_database, serve
from gateway.telemetry import configure_logs
from gateway.workers import Supervisor, start_metrics


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
        typer.Option(
            help="Database connections for the rest, of all workers.",
            show_default="4, or 2 a worker",
        ),
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

      headrace-gateway serve --embedded ./data          # everything on this machine

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
    assigned: dict[str, str] = {}
    for pair in set_ or []:
        name, separator, value = pair.partition("=")
        if not separator:
            raise SettingsError([f"--set {pair}: expected NAME=VALUE"])
        assigned[name.strip()] = value.strip()
    settings = settings_of(flags, config, assigned)
    configure_logs(format_=settings.log_format, level=settings.log_level)
    sys.exit(0 if _serve(settings) else 1)


def _serve(settings: Settings) -> bool:
    with contextlib.ExitStack() as stack:
        embedded = None
        if settings.embedded is not None:
            embedded = stack.enter_context(Embedded(settings.embedded))
            settings = with_stores(settings, embedded.postgres, embedded.s3)

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
        # The supervisor only watches: it needs no fast loop.
        return uvloop.run(alone()) if one else asyncio.run(supervised())


def _ready_line(settings: Settings, address: str, metrics_url: str) -> str:
    return (
        f"headrace-gateway {gateway_version()}: gRPC on {address},"
        f" metrics on {metrics_url or 'nothing'},"
        f" {settings.workers} worker{'s' * (settings.workers > 1)},"
        f" database connections {settings.ingest_connections} ingest"
        f" + {settings.query_connections} query,"
        f" TLS {'on' if settings.tls else 'off'},"
        f" tokens {'required' if settings.auth_required else 'not required'}"
    )
