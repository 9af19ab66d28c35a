"""Artifact queues on the command line: what `headrace sync` stores and `headrace status` shows."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from headrace import artifact_queue as queues
from headrace.settings import Settings
from headrace.uploader import deliver

TIMEOUT_S: Final = 300.0
"""Without any progress of an artifact, unless --timeout says otherwise."""


def queues_in(directories: list[Path]) -> list[Path]:
    """The queues in spool directories; a directory may be a queue itself."""
    return [queue for directory in directories for queue in queues.queues(directory)]


def sync_queues(found: list[Path], settings: Settings, timeout_s: float | None) -> bool:
    """Store what queues hold; tell on standard error; return whether everything is stored."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), DownloadColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        complete = [_sync(queue, settings, timeout_s, bar) for queue in found]
    return all(complete)


def _sync(queue: Path, settings: Settings, timeout_s: float | None, bar: Progress) -> bool:
    task = bar.add_task(f"{queues.run_of(queue)[:12]} artifacts", total=None)
    try:
        empty = deliver(
            queue,
            settings,
            deadline=time.monotonic() + (TIMEOUT_S if timeout_s is None else timeout_s),
            progress=lambda more: bar.advance(task, more),
        )
    except Exception as error:  # of one queue: the others are stored all the same
        bar.console.print(f"{queue.name}: not stored: {error}", soft_wrap=True, markup=False)
        return False
    status = queues.status_of(queue)
    text = status.summary() + ("; its uploader is at work" if empty is None else "")
    bar.console.print(f"{queue.name}: {text}", soft_wrap=True, markup=False)
    return bool(empty) and not status.failed


def print_queues(found: list[Path], *, as_json: bool) -> None:
    """Show what queues hold; changes nothing."""
    if as_json:
        for queue in found:
            status = asdict(queues.status_of(queue))
            sys.stdout.write(
                json.dumps({"queue": str(queue), "run_id": queues.run_of(queue), **status}) + "\n"
            )
        return
    if not found:
        return
    table = Table("run", "artifacts", "queue", title="Artifacts", title_justify="left")
    for queue in found:
        row = (queues.run_of(queue), queues.status_of(queue).summary(), str(queue))
        table.add_row(*map(escape, row))
    Console().print(table)
