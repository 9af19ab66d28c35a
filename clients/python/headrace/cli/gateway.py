"""The connection of a command, and what its failures mean: a line on standard error, an exit code.

The line names the resource and, where there is one, the remedy.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Any, Final

import typer

from headrace.cli import options
from headrace.client import Client
from headrace.errors import ConfigurationError, GatewayError, HeadraceError
from headrace.settings import Settings, load_settings

PATIENCE_S: Final = 5.0
"""A person waits at the terminal."""


class ExitCode(IntEnum):
    """What `headrace` exits with; documented in its --help and in docs/python.md."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5


_CODES: Final = {
    "RUN_NOT_FOUND": ExitCode.NOT_FOUND,
    "RUN_PURGED": ExitCode.NOT_FOUND,
    "EXPERIMENT_NOT_FOUND": ExitCode.NOT_FOUND,
    "WORKSPACE_NOT_FOUND": ExitCode.NOT_FOUND,
    "ARTIFACT_NOT_FOUND": ExitCode.NOT_FOUND,
    "FILTER_INVALID": ExitCode.USAGE,
    "FIELD_INVALID": ExitCode.USAGE,
    "FIELD_REQUIRED": ExitCode.USAGE,
    "LIMIT_EXCEEDED": ExitCode.USAGE,
    "UNAUTHENTICATED": ExitCode.REFUSED,
    "PERMISSION_DENIED": ExitCode.REFUSED,
    "UNAVAILABLE": ExitCode.UNREACHABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNREACHABLE,
}

_REMEDIES: Final = {
    "RUN_NOT_FOUND": "`headrace runs ls` lists runs, `headrace runs ls --deleted` deleted ones",
    "EXPERIMENT_NOT_FOUND": "`headrace experiments ls` lists experiments",
    "EXPERIMENT_DELETED": "`headrace experiments restore NAME` takes the deletion back",
    "ARTIFACT_NOT_FOUND": "`headrace artifacts ls RUN --recursive` lists them",
    "RUN_PROTECTED": "`headrace runs tag RUN --delete headrace.protected` takes its protection",
    "UNAUTHENTICATED": "`headrace login ADDRESS` stores another token",
    "PERMISSION_DENIED": "this token may not do that; `headrace login ADDRESS` stores another",
}


def exit_code(error: GatewayError) -> ExitCode:
    """What a command ends with that failed so."""
    return _CODES.get(error.reason, ExitCode.FAILED)


def fail(text: str, code: ExitCode) -> typer.Exit:
    """Say why, and return the exit to raise."""
    sys.stderr.write(f"headrace: {text}\n")
    return typer.Exit(code)


@contextlib.contextmanager
def failures(address: str = "") -> Iterator[None]:
    """Turn the failures of a block into a line and an exit code."""
    try:
        yield
    except ConfigurationError as error:
        raise fail(str(error), ExitCode.USAGE) from None
    except LookupError as error:
        raise fail(str(error.args[0]), ExitCode.NOT_FOUND) from None
    except ImportError as error:
        raise fail(str(error), ExitCode.FAILED) from None
    except GatewayError as error:
        raise fail(_explained(error, address), exit_code(error)) from None
    except HeadraceError as error:
        raise fail(str(error), ExitCode.FAILED) from None
    except BrokenPipeError:  # `headrace runs ls | head`
        sys.stderr.close()
        raise typer.Exit(ExitCode.DONE) from None
    except OSError as error:
        raise fail(str(error), ExitCode.FAILED) from None


@contextlib.contextmanager
def connected(
    address: str | None = None,
    tls_ca: str | None = None,
    workspace: str | None = None,
    *,
    token: str | None = None,
) -> Iterator[Client]:
    """Yield a client; see `failures`."""
    settings = settings_of(address, tls_ca, workspace)
    with (
        failures(settings.address),
        Client(
            settings.address,
            token=settings.token if token is None else token,
            tls_ca=settings.tls_ca,
            workspace=settings.workspace,
            patience_s=PATIENCE_S,
        ) as client,
    ):
        yield client


def settings_of(
    address: str | None = None, tls_ca: str | None = None, workspace: str | None = None
) -> Settings:
    """The settings of a command; a bad one ends it."""
    with failures():
        return load_settings(address=address, tls_ca=tls_ca, workspace=workspace)


def experiment_of(name: str) -> str | int:
    """An experiment as the user names it: by its name, or by `#` and its id."""
    return int(name[1:]) if name.startswith("#") and name[1:].isdigit() else name


def tags_of(texts: Sequence[str] | None) -> dict[str, str]:
    """Tags as the user writes them: KEY=VALUE."""
    tags = {}
    for text in texts or ():
        key, separator, value = text.partition("=")
        if not separator:
            raise fail(f"a tag is {text!r}; it must be KEY=VALUE", ExitCode.USAGE)
        tags[key] = value
    return tags


def on_gateway(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a client as its first argument; its user, the flags that say of what."""

    def connect(
        *,
        address: options.Address = None,
        tls_ca: options.TlsCa = None,
        workspace: options.Workspace = None,
        **flags: Any,
    ) -> None:
        with connected(address, tls_ca, workspace) as client:
            command(client, **flags)

    # What typer reads: the command's flags but for its client, then these.
    own = list(inspect.signature(command).parameters.values())[1:]
    shared = list(inspect.signature(connect).parameters.values())[:-1]
    signature = inspect.Signature([*own, *shared])
    connect.__signature__ = signature  # type: ignore[attr-defined]
    connect.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
    connect.__name__, connect.__doc__ = command.__name__, command.__doc__
    return connect


def _explained(error: GatewayError, address: str) -> str:
    if error.reason in {"UNAVAILABLE", "DEADLINE_EXCEEDED"} and error.retry:
        return (
            f"no gateway answers at {address}: {error}. Is `headrace-gateway serve` running? "
            "Another address: --address, HEADRACE_ADDRESS, or `headrace login ADDRESS`"
        )
    remedy = _REMEDIES.get(error.reason)
    return f"{error}; {remedy}" if remedy else str(error)
