"""The runner of the Python library: what its users call, with two liberties.

The writer's ids are given to it, where `headrace.init` would make them; and runs
are created and finished by stubs, since the library's senders do that by themselves.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import headrace
from headrace.errors import GatewayError
from headrace.run import Run
from headrace.settings import load_settings
from headrace.spool_files import WriterIdentity

from tests.conformance.runners.steps import RunnerError, Steps, Target, main, spelt

POLL_S: Final = 0.02
COUNTERS: Final = (
    "accepted_points",
    "late_points",
    "repeated_points",
    "rejected_points",
    "lost_records",
)


class LibraryWriter:
    """A Run as the protocol sees a writer; what it waits for it reads from `status()`."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log; the library refuses nothing."""
        self._run.log(values, step=step)

    def raise_if_stopped(self) -> None:
        """Raise why the sender gave up, as a user who looks at the status learns it."""
        if stopped := self._run.status().stopped:
            raise RunnerError(stopped.partition(":")[0])

    def flush(self, deadline_s: float) -> None:
        """Look at the status until all is committed."""
        deadline = time.monotonic() + deadline_s
        while True:
            self.raise_if_stopped()
            if not self._run.status().pending_records:
                return
            if time.monotonic() > deadline:
                raise RunnerError("DEADLINE_EXCEEDED")
            time.sleep(POLL_S)

    def finish(self, deadline_s: float) -> None:
        """Finish."""
        status = self._run.finish(deadline_s)
        self.raise_if_stopped()
        if not status.done:
            raise RunnerError("DEADLINE_EXCEEDED")

    def close(self) -> None:
        """Nothing: a spool that is left behind is its sender's."""

    def report(self) -> dict[str, Any]:
        """Return the status as a report."""
        status = self._run.status()
        return {
            "committed_sequence": status.committed_records,
            "counters": {name: getattr(status, name) for name in COUNTERS},
            "rejections": [
                {name: sample[name] for name in ("reason", "key", "step", "points")}
                for sample in status.rejections
            ],
            "error": status.stopped.partition(":")[0] or None,
            "finished": status.done,
            "refused_points": status.refused_points,
        }


class LibrarySteps(Steps):
    """Steps with headrace.Run and headrace.Client."""

    def __init__(self, target: Target, directory: Path) -> None:
        super().__init__(target, directory)
        self._settings = load_settings(
            address=target.address,
            token=target.token,
            tls_ca=target.tls_ca,
            spool_dir=directory / "spools",
            quiet=True,
        )
        self._client = headrace.Client(target.address, token=target.token, tls_ca=target.tls_ca)
        self._created: dict[str, Mapping[str, Any]] = {}

    def do_create_run(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """Create it, and note what the sender will say of it too."""
        self._created[step["run_id"]] = step
        return super().do_create_run(step)

    def open_writer(self, step: Mapping[str, Any]) -> LibraryWriter:
        """Start a Run under the ids of the step."""
        created = self._created.get(step["run_id"], {})
        identity = WriterIdentity(
            run_id=step["run_id"],
            writer_id=step["writer_id"],
            incarnation=step["incarnation"],
            experiment=created.get("experiment", ""),
            name=created.get("name", ""),
            step_policy={"FIRST": 2, "ALL": 3}.get(created.get("step_policy", ""), 1),
            late_policy=2 if created.get("late_policy") == "REJECT" else 1,
            rank=step.get("rank", 0),
            attempt=step.get("attempt", 1),
            resume_step=step.get("resume_step"),
            resume_exempt_keys=tuple(step.get("resume_exempt_keys", ())),
            ends_run=False,
            forked=True,  # the scenarios end their runs themselves
            trainer_pid=os.getpid(),
            created_us=time.time_ns() // 1_000,
        )
        return LibraryWriter(Run(identity, self._settings, world_size=1))

    def do_log(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """Look whether the sender still runs, then log."""
        writer = self.writers[step["writer"]]
        assert isinstance(writer, LibraryWriter)
        try:
            writer.raise_if_stopped()
        except RunnerError as error:
            count = step.get("count") or len(step["points"])
            return {"logged": 0, "refused": count, "error": error.reason}
        return super().do_log(step)

    def do_read(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """Read by the library."""
        columns = _called(
            self._client.read,
            step["run_id"],
            step.get("keys", ()),
            ranks=step.get("ranks", ()),
            aggregate=step["rank_aggregation"].lower() if "rank_aggregation" in step else None,
            first_step=step.get("first_step"),
            last_step=step.get("last_step"),
            policy=step["step_policy"].lower() if "step_policy" in step else None,
            max_points=step.get("max_points", 0),
            include_hidden=step.get("include_hidden", False),
        )
        return {
            "series": [
                {
                    "key": one.key,
                    "rank": one.rank,
                    "steps": one.step.tolist(),
                    "values": [spelt(value) for value in one.value.tolist()],
                }
                for one in columns
            ]
        }

    def do_list_series(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """List by the library."""
        found = _called(self._client.series, step["run_id"], prefix=step.get("key_prefix", ""))
        return {
            "series": [
                {
                    "key": one.key,
                    "rank": one.rank,
                    "point_count": one.point_count,
                    "last_step": one.last_step,
                    "last_value": spelt(one.last_value),
                    "min_value": spelt(one.min_value),
                    "max_value": spelt(one.max_value),
                }
                for one in found
            ]
        }

    def do_upload(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """Upload by the library."""
        artifacts = self._client.artifacts(step["run_id"])
        stored = _called(artifacts.upload, self.directory / step["file"], step["path"])[0]
        return {"size": stored.size, "digest": stored.digest}

    def do_download(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """Download by the library."""
        artifacts = self._client.artifacts(step["run_id"])
        _called(artifacts.download, step["path"], self.directory / step["file"])
        stored = _called(artifacts.stat, step["path"])
        return {"size": stored.size, "digest": stored.digest}

    def do_list_artifacts(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """List by the library."""
        artifacts = self._client.artifacts(step["run_id"])
        folder, recursive = step.get("folder", ""), step.get("recursive", False)
        found = _called(lambda: list(artifacts.list(folder, recursive=recursive)))
        return {"entries": [one.path + "/" * one.is_folder for one in found]}


def _called(method: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return method(*arguments, **options)
    except GatewayError as error:
        raise RunnerError(error.reason) from error


def make(target: Target, directory: Path) -> Steps:
    """Return the executor."""
    return LibrarySteps(target, directory)


if __name__ == "__main__":
    main(make)
