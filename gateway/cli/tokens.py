"""`headrace-gateway token`: make, list and revoke tokens."""

import asyncio
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.options import (
    AsJson,
    Config,
    Dsn,
    EmbeddedDirectory,
    database_at,
    dsn_of,
    settings_of,
)
from gateway.config import SettingsError
from gateway.domain.experiments import WORKSPACE_NAME, WORKSPACE_NAME_RULE
from gateway.store import migrate as migrations
from gateway.store.tokens import TokenStore

_LIFETIME: Final = re.compile(r"(\d+)([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

tokens = typer.Typer(
    help="Make, list and revoke the tokens that callers present.", no_args_is_help=True
)


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
    if not WORKSPACE_NAME.fullmatch(workspace):  # nothing else would take the name
        raise SettingsError([f"--workspace {workspace}: expected {WORKSPACE_NAME_RULE}"])

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
    """List tokens, without their texts.

    headrace-gateway token ls --embedded ./data
    """

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
            Text(token.name),
            Text(token.workspace),
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
    """Revoke a token for ever; running gateways notice within seconds.

    headrace-gateway token revoke 3
    """

    async def revoke(store: TokenStore) -> bool:
        return await store.revoke(token_id)

    if not _with_tokens(revoke, config, dsn, embedded):
        typer.echo(f"there is no token {token_id}", err=True)
        raise typer.Exit(1)
    typer.echo(f"token {token_id} is revoked")


def _with_tokens(work: Any, config: Path | None, dsn: str | None, embedded: Path | None) -> Any:
    settings = settings_of({"dsn": dsn, "embedded": embedded}, config)

    async def run(at: str) -> Any:
        await migrations.migrate(at)
        async with database_at(at) as database:
            return await work(TokenStore(database))

    with dsn_of(settings) as at:
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
