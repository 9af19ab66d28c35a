"""`headrace artifacts`: put, get, list, remove and verify the files of a run."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from headrace import artifact_rules as rules
from headrace.artifact_errors import ArtifactError
from headrace.artifacts import Artifact, Artifacts
from headrace.cli import options
from headrace.cli.gateway import ExitCode, connected, fail
from headrace.identifiers import is_identifier
from headrace.transfers import Direct
from headrace.transfers import Progress as Advance

application = typer.Typer(help="The files of runs.", no_args_is_help=True)

_INTERRUPTED: Final = 128 + signal.SIGINT  # a shell's status of what Ctrl-C ended

Path_ = Annotated[str, typer.Argument(metavar="PATH", help="The artifact or folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a file.")]
DirectMode = Annotated[
    str, typer.Option("--direct", help="Straight to S3, past the gateway: auto, always or never.")
]


@application.command()
def put(
    *,
    run: options.RunName,
    source: Annotated[Path, typer.Argument(exists=True, help="A file or a directory.")],
    name: Annotated[
        str | None, typer.Option(help="Path or folder in the run; default: the source's name.")
    ] = None,
    address: options.Address = None,
    tls_ca: options.TlsCa = None,
    workspace: options.Workspace = None,
    direct: DirectMode = "auto",
    as_json: AsJson = False,
) -> None:
    """Store a file, or every file below a directory. Repeat it to go on after an interruption.

    headrace artifacts put brisk-heron-417 checkpoints/ --name checkpoints
    """
    total = sum(file.stat().st_size for file, _ in rules.walk(source, ""))
    with (
        _artifacts(run, address, tls_ca, workspace, direct) as artifacts,
        _progress("put", total, quiet=as_json) as tell,
    ):
        stored = artifacts.upload(source, name, progress=tell)
    _print(list(stored), as_json=as_json)


@application.command()
def get(
    *,
    run: options.RunName,
    path: Path_,
    target: Annotated[
        Path | None, typer.Argument(help="Where to; default: the last part of PATH.")
    ] = None,
    address: options.Address = None,
    tls_ca: options.TlsCa = None,
    workspace: options.Workspace = None,
    direct: DirectMode = "auto",
) -> None:
    """Write an artifact or a folder here, verified. Repeat it to go on after an interruption.

    headrace artifacts get brisk-heron-417 checkpoints/last.pt
    """
    with (
        _artifacts(run, address, tls_ca, workspace, direct) as artifacts,
        _progress("get", _size(artifacts, path), quiet=False) as tell,
    ):
        written = artifacts.download(path, target, progress=tell)
    typer.echo(str(written))


@application.command("ls")
def list_(
    *,
    run: options.RunName,
    folder: Annotated[str, typer.Argument(help="Default: the top.")] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="All below.")] = False,
    address: options.Address = None,
    tls_ca: options.TlsCa = None,
    workspace: options.Workspace = None,
    as_json: AsJson = False,
) -> None:
    """List a folder.

    headrace artifacts ls brisk-heron-417 --recursive --json
    """
    with _artifacts(run, address, tls_ca, workspace) as artifacts:
        _print(list(artifacts.list(folder, recursive=recursive)), as_json=as_json)


@application.command("rm")
def remove(
    *,
    run: options.RunName,
    path: Path_,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="A folder.")] = False,
    address: options.Address = None,
    tls_ca: options.TlsCa = None,
    workspace: options.Workspace = None,
) -> None:
    """Delete an artifact, or a folder with all below it.

    headrace artifacts rm brisk-heron-417 checkpoints --recursive
    """
    with _artifacts(run, address, tls_ca, workspace) as artifacts:
        count = artifacts.delete(path, recursive=recursive)
    typer.echo(f"{count} deleted")


@application.command()
def verify(
    *,
    run: options.RunName,
    path: Annotated[str, typer.Argument(help="An artifact or folder; default: all.")] = "",
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with this local file or directory instead of reading S3."),
    ] = None,
    address: options.Address = None,
    tls_ca: options.TlsCa = None,
    workspace: options.Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte against its digest. Exits with 1 if anything differs.

    headrace artifacts verify brisk-heron-417
    """
    bad = 0
    with _artifacts(run, address, tls_ca, workspace) as artifacts:
        entries = _entries(artifacts, path)
        quiet = as_json or against is not None
        with _progress("verify", sum(entry.size for entry in entries), quiet=quiet) as tell:
            for entry in entries:
                fault = _fault(artifacts, entry, path, against, tell)
                bad += bool(fault)
                if as_json:
                    typer.echo(json.dumps({"path": entry.path, "good": not fault, "fault": fault}))
                else:
                    typer.echo(f"{'BAD ' if fault else 'good'}  {entry.path}  {fault}".rstrip())
    if bad:
        raise typer.Exit(ExitCode.FAILED)


def _fault(
    artifacts: Artifacts, entry: Artifact, path: str, against: Path | None, tell: Advance
) -> str:
    try:
        if against is None:
            artifacts.verify(entry.path, progress=tell)
            return ""
        relative = entry.path[len(path) :].lstrip("/")
        if not artifacts.matches(entry.path, against / relative if relative else against):
            return "the local file differs"
    except (ArtifactError, OSError) as error:
        return str(error)
    return ""


def _entries(artifacts: Artifacts, path: str) -> list[Artifact]:
    if path:
        try:
            return [artifacts.stat(path)]
        except ArtifactError as error:
            if error.reason != "ARTIFACT_NOT_FOUND":
                raise
    found = list(artifacts.list(path, recursive=True))
    if not found and path:
        raise ArtifactError(
            f"the run has no artifact or folder {path!r}", reason="ARTIFACT_NOT_FOUND"
        )
    return found


def _size(artifacts: Artifacts, path: str) -> int:
    return sum(entry.size for entry in _entries(artifacts, path))


@contextlib.contextmanager
def _artifacts(
    run: str,
    address: str | None,
    tls_ca: str | None,
    workspace: str | None,
    direct: str = "auto",
) -> Iterator[Artifacts]:
    """Yield a run's artifacts; failures become one line and an exit status."""
    modes: dict[str, Direct] = {"auto": "auto", "always": "always", "never": "never"}
    if direct not in modes:
        raise fail(f"--direct is {direct!r}; it must be one of {sorted(modes)}", ExitCode.USAGE)
    with connected(address, tls_ca, workspace) as client:
        # Of a whole id nothing is asked: transfers are more patient than look-ups.
        run_id = run if is_identifier(run) else client.find_run(run).run_id
        yield client.artifacts(run_id, direct=modes[direct])


@contextlib.contextmanager
def _progress(verb: str, total: int, *, quiet: bool) -> Iterator[Advance]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar,
        _interruptible(bar, "" if verb == "verify" else "; the same command goes on from here"),
    ):
        task = bar.add_task(verb, total=total)
        yield lambda more: bar.advance(task, more)


@contextlib.contextmanager
def _interruptible(bar: Progress, advice: str) -> Iterator[None]:
    """Let Ctrl-C end the process at once, without waiting for what its threads send or read."""

    def end(*_: object) -> None:
        bar.stop()  # shows the cursor again
        os.write(2, f"headrace: interrupted{advice}\n".encode())
        os._exit(_INTERRUPTED)  # as safe as a kill, which transfers outlive

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print(entries: list[Artifact], *, as_json: bool) -> None:
    if as_json:
        for entry in entries:
            created = entry.created_at.isoformat() if entry.created_at else None
            content = {
                "path": entry.path,
                "is_folder": entry.is_folder,
                "size": entry.size,
                "digest": entry.digest,
                "content_type": entry.content_type,
                "created_at": created,
            }
            sys.stdout.write(json.dumps(content) + "\n")
        return
    table = Table("path", "size", "digest", "type", "created")
    for entry in entries:
        if entry.is_folder:
            table.add_row(escape(f"{entry.path}/"), "", "", "", "")
        else:
            assert entry.created_at is not None  # noqa: S101 - files have one
            created_text = entry.created_at.isoformat(sep=" ", timespec="seconds")
            table.add_row(
                escape(entry.path),
                decimal(entry.size),
                entry.digest[:12],
                escape(entry.content_type),
                created_text,
            )
    Console().print(table)
