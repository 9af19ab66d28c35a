"""`headrace login`: remember a gateway and a token."""

import os
import sys
from typing import Annotated

import typer

from headrace.cli import options
from headrace.cli.gateway import connected, failures, settings_of
from headrace.cli.output import print_json, print_line
from headrace.errors import ConfigurationError
from headrace.login_file import Login, login_path, read_login, write_login


def login(
    *,
    address: Annotated[
        str | None, typer.Argument(help="host:port or https://host:port; default: the stored one.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Default: HEADRACE_TOKEN, else asked for; empty: none. `-`: from stdin."),
    ] = None,
    tls_ca: options.TlsCa = None,
    workspace: options.Workspace = None,
    check: Annotated[bool, typer.Option(help="Whether the gateway is asked first.")] = True,
    as_json: options.AsJson = False,
) -> None:
    """Store a gateway's address and a token for commands, clients and training jobs.

    The file is readable for you alone. HEADRACE_ADDRESS and HEADRACE_TOKEN win over it, and
    its token is never sent to another address. With --no-check nothing is asked.

    headrace login https://tracker.example.org:7420

    echo "$TOKEN" | headrace login 10.0.0.7:7420 --token -
    """
    file = login_path(os.environ)
    if address or os.environ.get("HEADRACE_ADDRESS"):
        try:
            read_login(file)
        except ConfigurationError:  # it is written anew: nothing below shall stumble over it
            os.environ["HEADRACE_LOGIN_FILE"] = os.devnull
    settings = settings_of(address, tls_ca, workspace)
    given = token if token is not None else os.environ.get("HEADRACE_TOKEN")
    if given == "-":
        given = sys.stdin.readline().strip()
    elif given is None:
        given = ""
        if sys.stdin.isatty():
            given = typer.prompt("Token (empty for none)", default="", hide_input=True)
    stored = Login(
        address=settings.address,
        token=given,
        tls_ca=settings.tls_ca,
        workspace=workspace or "",
    )
    if check:
        with connected(
            stored.address, stored.tls_ca, stored.workspace, token=stored.token
        ) as client:
            next(client.search_experiments(), None)
    with failures():
        path = write_login(stored, file)
    if as_json:
        print_json({"address": stored.address, "file": str(path), "token": bool(given)})
    else:
        print_line(f"{stored.address} {'answers; ' if check else ''}stored in {path}")
