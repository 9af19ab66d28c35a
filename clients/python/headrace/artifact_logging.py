"""The artifacts that a run logs: queued in the trainer, stored by another program.

The first call makes a queue (artifact_queue.py) and starts its uploader, a
program of its own. What cannot be queued is counted, and warned of once. Any
thread may log; directories are walked and objects encoded outside the lock, so
that a slow call holds up no other one.
"""

import contextlib
import csv
import io
import json
import mimetypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from headrace import artifact_queue as queues
from headrace.artifact_queue import ArtifactQueue, ArtifactStatus
from headrace.artifact_rules import name_of, path_fault, walk
from headrace.errors import HeadraceError
from headrace.settings import Settings

_POLL_S: Final = 0.02


class ArtifactLog:
    """The artifacts that one process of a run logs."""

    def __init__(self, run_id: str, settings: Settings) -> None:
        self._run_id = run_id
        self._settings = settings
        self._queue: ArtifactQueue | None = None
        self._uploader: subprocess.Popen[bytes] | None = None
        self._dropped = 0
        self._last = ArtifactStatus()
        self._lock = threading.RLock()
        self._finished = False
        self.directory: Path | None = None
        """Of the last queue; None before there is one."""

    def add_path(self, source: Path, name: str | None, content_type: str) -> str:
        """Queue a file or a directory; return what is wrong, empty when nothing is."""
        files = walk(source, name_of(source) if name is None else name)
        if not source.exists():
            return f"{source} does not exist"
        faults = ""
        for file, path in files:
            faults = self._add(path, content_type, file) or faults
        return faults

    def add_bytes(self, data: bytes, path: str, content_type: str) -> str:
        """Queue content; return what is wrong, empty when nothing is."""
        return self._add(path, content_type, data)

    def _add(self, path: str, content_type: str, what: Path | bytes) -> str:
        if fault := path_fault(path):
            return f"artifact path {path!r} {fault}"
        kind = content_type or mimetypes.guess_type(path)[0] or ""
        with self._lock:
            if self._finished:
                return "the run is finished"
            try:
                if self._queue is None:
                    self._queue = ArtifactQueue(self._settings.spool_dir, self._run_id)
                    self.directory = self._queue.directory
                if isinstance(what, Path):
                    self._queue.add_file(what, path, kind)
                else:
                    self._queue.add_bytes(what, path, kind)
            except OSError as error:
                self._dropped += 1
                return f"{path!r} was not queued: {error}"
            self._ensure_uploader()
        return ""

    def _ensure_uploader(self) -> None:
        """Start the uploader, or start it again if it died."""
        if self._settings.mode != "online" or self._queue is None:
            return
        if self._uploader is not None and self._uploader.poll() is None:
            return
        directory = self._queue.directory
        with contextlib.suppress(OSError), (directory / queues.UPLOADER_LOG).open("ab") as log:
            self._uploader = subprocess.Popen(
                [sys.executable, "-P", "-m", "headrace.uploader", os.fspath(directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"GRPC_VERBOSITY": "ERROR", **os.environ, **self._settings.environment()},
                start_new_session=True,
            )

    def status(self) -> ArtifactStatus:
        """How far they have come. Asks no server."""
        queue = self._queue
        if queue is None:
            return self._last
        return queues.status_of(queue.directory, dropped=self._dropped)

    def finish(self, deadline: float) -> ArtifactStatus:
        """Wait until nothing is pending, or until `deadline` on the monotonic clock; end."""
        while time.monotonic() < deadline and self._settings.mode == "online":
            with self._lock:
                self._ensure_uploader()
            if self.status().done:
                break
            time.sleep(_POLL_S)
        with self._lock:  # a call of another thread is in the queue before it, or refused
            self._finished = True
            self._last = status = self.status()
            queue, self._queue = self._queue, None
            uploader, self._uploader = self._uploader, None
            if queue is None:
                return status
            queue.close()
        if uploader is not None:
            if status.done:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    uploader.wait(1.0)
            if uploader.returncode is None:
                uploader.returncode = 0  # it outlives us on purpose: no ResourceWarning
        if status.done and not status.failed:
            queues.remove(queue.directory)
        return status

    def forget(self) -> None:
        """In a forked child: the queue and its uploader are the parent's."""
        self._lock = threading.RLock()
        if self._queue is not None:
            self._queue.abandon()
            self._queue = None
        if self._uploader is not None:
            self._uploader.returncode = 0
            self._uploader = None
        self._dropped = 0


# ---- turning objects into files ---------------------------------------------------


def figure_bytes(figure: Any, name: str) -> bytes:
    """Return a figure in the format of the name's ending.

    Takes Matplotlib figures, Plotly figures, PIL images, and arrays of
    (height, width[, 3 or 4]) with PIL installed.

    Raises:
        HeadraceError: none of these.
    """
    buffer = io.BytesIO()
    ending = name.rpartition(".")[2].lower()
    if hasattr(figure, "savefig"):
        figure.savefig(buffer, format=ending, bbox_inches="tight")
    elif hasattr(figure, "write_html"):
        if ending in {"html", "htm"}:
            return str(figure.to_html(include_plotlyjs="cdn")).encode()
        return bytes(figure.to_image(format=ending))
    elif hasattr(figure, "save"):
        figure.save(buffer, format={"jpg": "jpeg"}.get(ending, ending))
    else:
        try:
            from PIL import Image  # noqa: PLC0415 - only for arrays

            Image.fromarray(figure).save(buffer, format={"jpg": "jpeg"}.get(ending, ending))
        except (ImportError, TypeError, ValueError, AttributeError) as error:
            kind = type(figure).__name__
            raise HeadraceError(f"a {kind} is no figure that can be saved: {error}") from error
    return buffer.getvalue()


def table_bytes(table: Any, name: str) -> bytes:
    """Return a table as CSV when the name ends so, else as JSON: `columns` and rows of `data`.

    Args:
        table: a mapping of column name to values, a sequence of mappings (one
            a row), or a pandas or Polars frame.
        name: of the artifact.

    Raises:
        HeadraceError: none of these, or columns of different lengths.
    """
    columns, rows = _columns_and_rows(table)
    if name.lower().endswith(".csv"):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        return text.getvalue().encode()
    return json_bytes({"columns": columns, "data": rows})


def _columns_and_rows(table: Any) -> tuple[list[str], list[list[Any]]]:
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        frame = table.to_dict(orient="list") if hasattr(table, "iloc") else table.to_dict()
        table = {name: list(values) for name, values in frame.items()}
    if isinstance(table, Mapping):
        columns = [str(name) for name in table]
        values = [list(column) for column in table.values()]
        if len({len(column) for column in values}) > 1:
            raise HeadraceError("the columns of a table must have one length")
        return columns, [list(row) for row in zip(*values, strict=True)]
    if isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        columns = list(dict.fromkeys(str(name) for row in table for name in row))
        return columns, [[row.get(name) for name in columns] for row in table]
    raise HeadraceError("a table is a mapping of columns, a sequence of mappings, or a data frame")


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON; arrays and scalars of other libraries become lists and numbers.

    Raises:
        HeadraceError: something in it is no JSON.
    """

    def other(item: Any) -> Any:
        if hasattr(item, "tolist"):
            return item.tolist()
        if hasattr(item, "isoformat"):
            return item.isoformat()
        raise TypeError(f"a {type(item).__name__} is no JSON")

    try:
        return json.dumps(value, default=other, ensure_ascii=False, indent=1).encode()
    except (TypeError, ValueError) as error:
        raise HeadraceError(str(error)) from error
