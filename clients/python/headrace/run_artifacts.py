"""What `Run` offers for artifacts: every call queues and returns. See artifact_queue.py."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.artifact_logging import ArtifactLog, figure_bytes, json_bytes, table_bytes
from headrace.artifact_queue import ArtifactStatus


class ArtifactMethods(ABC):
    """The methods; `Run` says when they may queue."""

    _artifacts: ArtifactLog

    @abstractmethod
    def _queue_artifact(self, queue: Callable[[], str]) -> None:
        """Call `queue`, which returns what is wrong; raise nothing into training."""

    def log_artifact(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        content_type: str = "",
    ) -> None:
        """Stores a file, or every file below a directory, with the run, in the background.

        Returns when the request is queued. Files of up to 1 MiB are copied;
        larger ones are cloned or hard-linked where the file system can, so
        that they may be deleted or replaced at once. A larger file that is
        written in place before it is stored is not stored, and reported.

        Args:
            path: the file or directory.
            name: the artifact's path in the run, or the folder for the
                directory's files; None: the last part of `path`.
            content_type: media type; empty: by the name's ending.

        Raises:
            HeadraceError: only when strict: it could not be queued.
        """
        source = Path(path)
        self._queue_artifact(lambda: self._artifacts.add_path(source, name, content_type))

    def log_text(self, text: str, name: str) -> None:
        """Stores text under `name`, like `log_artifact`."""
        self._queue_artifact(lambda: self._artifacts.add_bytes(text.encode(), name, ""))

    def log_json(self, value: Any, name: str) -> None:
        """Stores a value as JSON under `name`; arrays become lists."""
        self._queue_artifact(lambda: self._artifacts.add_bytes(json_bytes(value), name, ""))

    def log_table(self, table: Any, name: str) -> None:
        """Stores a table under `name`: as CSV if it ends in `.csv`, else as JSON.

        Args:
            table: a mapping of column to values, a sequence of mappings, or a
                pandas or Polars frame.
            name: the artifact's path.
        """
        self._queue_artifact(lambda: self._artifacts.add_bytes(table_bytes(table, name), name, ""))

    def log_figure(self, figure: Any, name: str) -> None:
        """Stores a figure under `name`, in the format of its ending; drawn in this call.

        Args:
            figure: a Matplotlib or Plotly figure, a PIL image, or an array
                of pixels (with Pillow installed).
            name: the artifact's path, for example `plots/loss.png`.
        """
        self._queue_artifact(
            lambda: self._artifacts.add_bytes(figure_bytes(figure, name), name, "")
        )

    def artifact_status(self) -> ArtifactStatus:
        """How many artifacts of this process are stored, pending and failed. Asks no server."""
        return self._artifacts.status()
