"""`headrace tail`: print the points of a run as they are committed."""

import threading
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from headrace.cli import options
from headrace.cli.gateway import connected
from headrace.cli.output import print_json, print_line
from headrace.client import Client
from headrace.columns import SeriesColumns
from headrace.errors import GatewayError
from headrace.reading import Update

STATE_INTERVAL_S: Final = 1.0
"""How often it is asked whether the run goes on."""

SETTLE_S: Final = 2.0
"""What was committed last is on its way for less than this."""

_Recent = dict[tuple[str, int], deque[SeriesColumns]]
"""The last points of each series by key and rank, in pieces."""


def tail(
    *,
    run: options.RunName,
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Default: all.")] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Points of each metric to begin with.")
    ] = 5,
    address: options.Address = None,
    tls_ca: options.TlsCa = None,
    workspace: options.Workspace = None,
    as_json: options.AsJson = False,
) -> None:
    """Print a run's points as they are committed, until the run ends or Ctrl-C.

    headrace tail brisk-heron-417

    headrace tail brisk-heron-417 train/loss --lines 100 --json
    """
    with (
        connected(address, tls_ca, workspace) as client,
        connected(address, tls_ca, workspace) as following,
    ):
        run_id = client.find_run(run).run_id
        try:
            for columns in _points(client, following, run_id, keys or [], lines):
                _print(columns, as_json=as_json)
        except KeyboardInterrupt:
            return
        state = client.run(run_id).state
    if as_json:
        print_json({"run_id": run_id, "state": state})
    else:
        print_line(f"run {run_id} is {state}")


def _points(
    client: Client, following: Client, run_id: str, keys: list[str], lines: int
) -> Iterator[SeriesColumns]:
    """Yield the last points that are there, then new ones until the run has ended."""
    ended = threading.Event()
    failures: list[Exception] = []
    threading.Thread(
        target=_close_when_ended, args=(client, following, run_id, ended, failures), daemon=True
    ).start()
    recent: _Recent | None = {}
    generation = 0
    try:
        for update in following.follow(run_id, keys):
            if update.generation != generation:  # what came before comes again
                generation, recent = update.generation, {}
            yield from _new(update, recent, lines if generation == 1 else 0)
            if update.columns is None:
                recent = None
    except (GatewayError, ValueError):  # ValueError: the channel is closed
        if failures:
            raise failures[0] from None
        if not ended.is_set():
            raise


def _new(update: Update, recent: _Recent | None, lines: int) -> Iterator[SeriesColumns]:
    """Collect the snapshot, yield its last points at its end; afterwards yield what comes."""
    columns = update.columns
    if recent is None:
        if columns is not None:
            yield columns
    elif columns is not None:
        pieces = recent.setdefault((columns.key, columns.rank), deque())
        pieces.append(columns)
        surplus = sum(map(len, pieces)) - lines
        while surplus > 0:
            first = pieces.popleft()
            if len(first) > surplus:
                pieces.appendleft(_last(first, len(first) - surplus))
            surplus -= len(first)
    else:
        for pieces in recent.values():
            yield from pieces


def _last(columns: SeriesColumns, count: int) -> SeriesColumns:
    start = len(columns) - count
    return SeriesColumns(
        key=columns.key,
        rank=columns.rank,
        attempt=columns.attempt,
        step=columns.step[start:],
        time=columns.time[start:],
        value=columns.value[start:],
    )


def _close_when_ended(
    client: Client,
    following: Client,
    run_id: str,
    ended: threading.Event,
    failures: list[Exception],
) -> None:
    """Ends the following read once the run has ended and its last points had time to come.

    Ends it too when that cannot be known, and says why in `failures`.
    """
    pause = threading.Event()
    try:
        while client.run(run_id).state == "RUNNING":
            pause.wait(STATE_INTERVAL_S)
        pause.wait(SETTLE_S)
    except Exception as error:  # nobody else would end it
        failures.append(error)
    ended.set()
    following.close()


def _print(columns: SeriesColumns, *, as_json: bool) -> None:
    for step, time, value in zip(
        columns.step.tolist(), columns.time.tolist(), columns.value.tolist(), strict=True
    ):
        at = time.replace(tzinfo=UTC)
        if as_json:
            print_json(
                {"key": columns.key, "rank": columns.rank, "step": step, "time": at, "value": value}
            )
        else:
            print_line(_line(columns, step, at, value))


def _line(columns: SeriesColumns, step: int, at: datetime, value: float) -> str:
    rank = f" rank {columns.rank}" if columns.rank else ""
    return f"{at.astimezone():%H:%M:%S}  {columns.key}{rank}  step {step}  {value:.6g}"
