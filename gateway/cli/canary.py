"""`headrace-gateway canary`."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Annotated

import typer
from headrace.errors import ConfigurationError
from headrace.settings import parse_address
from prometheus_client import start_http_server
from rich.console import Console
from rich.table import Table

from gateway.canary.measurements import Measurements
from gateway.canary.probe import Pace, Target, watch
from gateway.cli.options import AsJson
from gateway.config import SettingsError, split_address
from gateway.server import StartError


def canary_command(
    *,
    address: Annotated[
        str,
        typer.Option(envvar="HEADRACE_ADDRESS", help="host:port, or https://host:port for TLS."),
    ] = "127.0.0.1:7420",
    token: Annotated[
        str, typer.Option(envvar="HEADRACE_TOKEN", help="Bearer token.", show_default=False)
    ] = "",
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="HEADRACE_TLS_CA",
            help="PEM authorities of the gateway's certificate, not the public ones: use TLS.",
        ),
    ] = None,
    interval_s: Annotated[float, typer.Option(min=0.01, help="Seconds between beats.")] = 1.0,
    records: Annotated[int, typer.Option(min=1, max=1_000, help="Log calls of a beat.")] = 10,
    beats: Annotated[int, typer.Option(min=0, help="End after so many; 0: never.")] = 0,
    metrics_listen: Annotated[
        str, typer.Option(help="Prometheus address, or `off`.")
    ] = "127.0.0.1:7422",
    json_: AsJson = False,
) -> None:
    """Write known points to a live gateway, read them back, and measure what comes of it.

    Its runs belong to the experiment headrace/canary/probe: a run an hour.

      headrace-gateway canary --address gateway:7420 --metrics-listen 0.0.0.0:7422

      headrace-gateway canary --beats 10 --metrics-listen off --json      # a check, for scripts

    With --beats it ends too after so many failures in a row, and at once when it is refused.

    Exit status: 0 all that was acknowledged was read back, once and in order; 1 it was not,
    or not all beats were done; 2 the flags are bad.
    """
    if tls_ca is not None and not tls_ca.is_file():
        raise SettingsError([f"--tls-ca {tls_ca}: there is no such file"])
    try:
        address = parse_address(address)
    except ConfigurationError as error:
        raise SettingsError([str(error)]) from None
    measurements = Measurements()
    if metrics_listen != "off":
        _serve_metrics(metrics_listen, measurements)
    target = Target(
        address=address,
        token=token,
        root_certificates=tls_ca.read_bytes() if tls_ca is not None else None,
    )
    pace = Pace(interval_s=interval_s, records=records, beats=beats)
    complete = asyncio.run(_until_terminated(target, pace, measurements))
    report = measurements.report()
    if json_:
        typer.echo(json.dumps(report))
    else:
        table = Table("", "")
        for name, value in report.items():
            table.add_row(name, f"{value:,}")
        Console().print(table)
    if not (complete and measurements.healthy):
        raise typer.Exit(1)


def _serve_metrics(address: str, measurements: Measurements) -> None:
    try:
        host, port = split_address(address)
    except ValueError:
        raise SettingsError([f"--metrics-listen {address}: expected host:port, or off"]) from None
    try:
        start_http_server(port, host, registry=measurements.registry)
    except OSError as error:
        raise StartError(f"metrics cannot listen on {address}: {error.strerror}") from error


async def _until_terminated(target: Target, pace: Pace, measurements: Measurements) -> bool:
    """Return False when the canary gave up."""
    task = asyncio.create_task(watch(target, pace, measurements))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return True
