"""Tables for people, JSON lines for machines."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH: Final = 200
"""Columns of a table that no terminal shows."""

_STATES: Final = {
    "RUNNING": "cyan",
    "FINISHED": "green",
    "FAILED": "red",
    "KILLED": "yellow",
    "LOST": "magenta",
}


def console() -> Console:
    """Standard output."""
    found = Console()
    return found if found.is_terminal else Console(width=PIPE_WIDTH)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON; NaN and infinities become text."""
    sys.stdout.write(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, none: str) -> None:
    """Print rows; `none` when there are none."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(column))  # names of runs and metrics: no markup
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(shown(cell)) for cell in row))
    if table.row_count:
        console().print(table)
    else:
        print_line(none)


def print_line(text: str) -> None:
    """Print a line as it is."""
    sys.stdout.write(text + "\n")


def shown(value: object) -> str:
    """A cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def state(name: str) -> Text:
    """A run's state in its colour."""
    return Text(name, style=_STATES.get(name, ""))


def duration(started: datetime, ended: datetime | None) -> str:
    """How long something took, or takes, for example `3h 12m`."""
    seconds = max(0, int(((ended or datetime.now(UTC)) - started).total_seconds()))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60}m"


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime | np.datetime64):
        return str(value) if isinstance(value, np.datetime64) else value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
