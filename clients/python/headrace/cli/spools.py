"""`headrace sync` and `headrace status`: deliver what no sender does, see what waits."""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from headrace import spool_files
from headrace.artifact_delivery import print_queues, queues_in, sync_queues
from headrace.cli import options
from headrace.cli.gateway import ExitCode, exit_code, fail, settings_of
from headrace.cli.output import print_json, print_line
from headrace.client import Client
from headrace.errors import GatewayError, SpoolError
from headrace.sender import Sender, SenderStoppedError
from headrace.settings import Settings
from headrace.spool_files import Note, ProcessLock, WriterIdentity
from headrace.spool_reader import SpoolReader

PROGRESS_INTERVAL_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolReport:
    """What `status` and `sync` say of one spool.

    Attributes:
        outcome: `waiting` (nobody delivers it), `sending` (its own sender is at
            work), `delivered`, `sent` (everything there, but its trainer still
            writes), or `failed`.
        records: in the spool or delivered from it.
    """

    spool: str
    run_id: str
    rank: int
    attempt: int
    outcome: str
    records: int
    committed_records: int
    bytes: int
    text: str = ""


def sync(
    *,
    directories: Annotated[
        list[Path] | None,
        typer.Argument(help="Spools, or directories of spools; default: HEADRACE_SPOOL_DIR."),
    ] = None,
    address: options.Address = None,
    tls_ca: options.TlsCa = None,
    workspace: options.Workspace = None,
    timeout: Annotated[
        float | None, typer.Option(help="Give up on a spool after so many seconds.", min=0)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a spool or queue.")
    ] = False,
) -> None:
    """Send what spools hold. Safe to repeat: every record is stored exactly once.

    Exits with 1 when something was not sent.

    headrace sync

    headrace sync /mnt/spool --timeout 60
    """
    settings = settings_of(address, tls_ca, workspace)
    spools = _spools(directories, settings)
    queues = queues_in(directories or [settings.spool_dir])
    reports = asyncio.run(_sync_all(spools, settings, timeout, quiet=as_json))
    if reports or not queues:
        _print(reports, as_json=as_json)
    queues = queues_in(directories or [settings.spool_dir])  # a kept console joined them
    stored = sync_queues(queues, settings, timeout)  # last: the spools create the runs
    if not stored or any(report.outcome not in {"delivered", "sent"} for report in reports):
        raise typer.Exit(ExitCode.FAILED)


def status(
    *,
    directories: Annotated[
        list[Path] | None,
        typer.Argument(help="Spools, or directories of spools; default: HEADRACE_SPOOL_DIR."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: the gateway, then each spool or queue.")
    ] = False,
) -> None:
    """Show whether the gateway answers, and what is not delivered yet. Changes nothing.

    Exits with 5 when no gateway answers, with 4 when it refuses the token.

    headrace status

    headrace status --json
    """
    settings = settings_of()
    failure = _failure(settings)
    reached = failure is None or exit_code(failure) is not ExitCode.UNREACHABLE
    if as_json:
        text = "" if failure is None else str(failure)
        print_json({"gateway": settings.address, "answers": reached, "text": text})
    else:
        answer = ("answers" if failure is None else str(failure)) if reached else "does not answer"
        print_line(f"gateway {settings.address}: {answer}")
    spools = _spools(directories, settings)
    queues = queues_in(directories or [settings.spool_dir])
    if spools or not queues:
        _print([_inspect(path) for path in spools], as_json=as_json)
    print_queues(queues, as_json=as_json)
    if failure is not None:
        raise typer.Exit(exit_code(failure))


def _failure(settings: Settings) -> GatewayError | None:
    """Why the gateway does not serve us; None when it does."""
    try:
        with Client(
            settings.address,
            token=settings.token,
            tls_ca=settings.tls_ca,
            workspace=settings.workspace,
            patience_s=1.0,
        ) as client:
            next(client.search_experiments(), None)
    except GatewayError as error:
        return error
    return None


def _spools(directories: list[Path] | None, settings: Settings) -> list[Path]:
    found = []
    for directory in directories or [settings.spool_dir]:
        if directories and not directory.is_dir():
            raise fail(f"{directory} is no directory", ExitCode.USAGE)
        found += [path.absolute() for path in spool_files.spools(directory)]
    return found


async def _sync_all(
    spools: list[Path], settings: Settings, timeout_s: float | None, *, quiet: bool
) -> list[SpoolReport]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("records"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        return [await _sync(path, settings, timeout_s, progress) for path in spools]


async def _sync(
    path: Path, settings: Settings, timeout_s: float | None, progress: Progress
) -> SpoolReport:
    before = _inspect(path)
    if before.outcome != "waiting":
        return before
    task = progress.add_task(f"{before.run_id[:12]} rank {before.rank}", total=before.records)
    messages: list[str] = []
    try:
        sender = Sender(path, settings, once=True, log=messages.append)
    except (SpoolError, OSError) as error:
        if _is_gone(path):
            return _outcome(before, "delivered", before.records, "")
        return _outcome(before, "failed", before.committed_records, str(error))

    async def show() -> None:
        while True:
            progress.update(task, completed=sender.status.committed_sequence)
            await asyncio.sleep(PROGRESS_INTERVAL_S)

    showing = asyncio.create_task(show())
    try:
        async with asyncio.timeout(timeout_s):
            finished = await sender.run()
        outcome, text = ("delivered" if finished else "sent"), ""
        if sender.status.rejected_points:
            text = f"{sender.status.rejected_points:,} points were rejected"
    except TimeoutError:
        outcome, text = "failed", "; ".join(messages[-1:]) or "not delivered in time"
    except (SenderStoppedError, OSError) as error:
        outcome, text = "failed", str(error)
    finally:
        showing.cancel()
        sender.close()
        progress.update(task, completed=sender.status.committed_sequence)
    damages = [message for message in messages if message.startswith("damaged")]
    text = "; ".join(filter(None, [text, *damages]))
    return _outcome(before, outcome, sender.status.committed_sequence, text)


def _outcome(before: SpoolReport, outcome: str, committed: int, text: str) -> SpoolReport:
    return SpoolReport(
        **{
            **asdict(before),
            "outcome": outcome,
            "records": max(before.records, committed),
            "committed_records": committed,
            "text": text,
        }
    )


def _inspect(path: Path) -> SpoolReport:
    """Reads a spool without claiming it."""
    try:
        identity = WriterIdentity.read(path)
        lock = ProcessLock(path / spool_files.SENDER_LOCK)
        waiting = lock.acquire()
        lock.close()
        note = Note.read(path / spool_files.STATUS_NOTE)
        reader = SpoolReader(path, identity.incarnation)
        reader.seek(1 << 62, ended=True)
        reader.close()
    except (SpoolError, OSError) as error:
        gone = _is_gone(path)
        return SpoolReport(
            spool=str(path), run_id="", rank=0, attempt=0,
            outcome="delivered" if gone else "failed",
            records=0, committed_records=0, bytes=0, text="" if gone else str(error),
        )  # fmt: skip
    return SpoolReport(
        spool=str(path),
        run_id=identity.run_id,
        rank=identity.rank,
        attempt=identity.attempt,
        outcome="waiting" if waiting else "sending",
        records=reader.next_sequence - 1,
        committed_records=note.get("committed_sequence", 0),
        bytes=sum(file.stat().st_size for file in path.glob(f"*{spool_files.SEGMENT_SUFFIX}")),
        text=note.get("stopped", ""),
    )


def _is_gone(path: Path) -> bool:
    """Whether a spool that was there is not: its own sender has delivered it meanwhile."""
    return not (path / spool_files.WRITER_FILE).exists()


def _print(reports: list[SpoolReport], *, as_json: bool) -> None:
    if as_json:
        for report in reports:
            sys.stdout.write(json.dumps(asdict(report)) + "\n")
        return
    console = Console()
    if not reports:
        console.print("no spools: everything is delivered")
        return
    table = Table("run", "rank", "attempt", "", "committed", "records", "MB", "")
    for report in reports:
        table.add_row(
            Text(report.run_id),
            str(report.rank),
            str(report.attempt),
            report.outcome,
            f"{report.committed_records:,}",
            f"{report.records:,}",
            f"{report.bytes / 1e6:.1f}",
            Text(report.text or report.spool),
        )
    console.print(table)
