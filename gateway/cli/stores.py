"""`headrace-gateway migrate`, `doctor` and `artifacts`: commands about the stores."""

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from gateway import doctor
from gateway.artifacts.cleanup import Report
from gateway.artifacts.wiring import open_artifacts
from gateway.cli.options import (
    AsJson,
    Config,
    Dsn,
    EmbeddedDirectory,
    database_at,
    dsn_of,
    running,
    settings_of,
)
from gateway.config import Settings, SettingsError
from gateway.store import migrate as migrations

artifacts = typer.Typer(help="Look after the bucket of artifacts.", no_args_is_help=True)


def migrate_command(
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
    settings = settings_of({"dsn": dsn, "embedded": embedded}, config)

    async def pending(at: str) -> list[migrations.Migration]:
        async with database_at(at) as database, database.query() as connection:
            return await migrations.pending(connection)

    with dsn_of(settings) as at:
        work = pending(at) if check else migrations.migrate(at)
        names = [migration.name for migration in asyncio.run(work)]
    if json_:
        typer.echo(json.dumps({"pending" if check else "applied": names}))
    else:
        verb = "pending" if check else "applied"
        typer.echo(f"{verb}: {', '.join(names)}" if names else "the database is up to date")
    if check and names:
        raise typer.Exit(1)


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
    with running(settings_of({"dsn": dsn, "embedded": embedded}, config)) as settings:
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
            database_at(settings.dsn) as database,
            open_artifacts(settings, database) as opened,
        ):
            if opened is None:
                raise SettingsError(["which bucket? set HEADRACE_GATEWAY_S3_BUCKET"])
            return await opened.cleanup.reconcile(dry_run=dry_run, older_than_s=older_than_s)

    with running(settings_of({"dsn": dsn, "embedded": embedded}, config)) as settings:
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
