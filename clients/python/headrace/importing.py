"""Runs from Parquet files into a gateway: part of `headrace.Client`. See exporting.py.

Idempotent: run id, writers and batches follow from the file, so an import that
was interrupted is repeated as a whole and every point is stored once. A run that
was not imported has points of other writers: nothing is imported into it.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

from headrace.calls import gateway_error, retried
from headrace.errors import GatewayError, HeadraceError
from headrace.exporting import FORMAT, FORMAT_METADATA, RUN_METADATA, arrow
from headrace.identifiers import derived_identifier, new_identifier
from headrace.limits import BATCH_POINTS_MAX
from headrace.run_info import RunInfo
from headrace.runs import RunMethods
from headrace.v1 import metric_service_pb2 as metrics_pb
from headrace.v1 import run_service_pb2 as pb

READ_POINTS: Final = 256 * 1024
"""Points read at a time."""

IMPORTED_FACT: Final = "headrace.imported"
"""Of runs that were made by an import."""

KEYS_PER_MESSAGE: Final = 500
"""Of at most 1,000 bytes each: below the 1 MiB of a message."""

_ENDED: Final = frozenset({pb.RUN_STATE_FINISHED, pb.RUN_STATE_FAILED, pb.RUN_STATE_KILLED})

_Points = dict[str, NDArray[Any]]


class ImportMethods(RunMethods):
    """The methods that read Parquet."""

    def import_run(
        self,
        path: str | os.PathLike[str],
        *,
        experiment: str | None = None,
        new_id: bool = False,
    ) -> RunInfo:
        """Store the run of a Parquet file that `export_run` wrote; return it as stored.

        The run keeps its id, name, times, state, metadata, attempts and points;
        a run that was still going on is stored as RUNNING and becomes LOST
        after its lease.

        Args:
            path: the file.
            experiment: to store it in; default: the original's.
            new_id: under an id of its own, so that it stands beside the original.

        Raises:
            HeadraceError: the file was not written by `export_run`.
            OSError: it cannot be read.
            GatewayError: RUN_EXISTS for a run that was not imported, or into another
                experiment; RUN_PURGED, EXPERIMENT_DELETED, …
            ImportError: pyarrow is not installed.
        """
        _, parquet = arrow()
        try:
            file = parquet.ParquetFile(Path(path))
        except ValueError as error:  # what pyarrow's ArrowInvalid is
            raise HeadraceError(f"{path} is no Parquet file: {error}") from error
        with file:
            run = _run_of(file, Path(path))
            if new_id:
                run.run_id = new_identifier()
            if experiment is not None:
                run.experiment = experiment
            self._create(run, experiment)
            for attempt in run.attempts:
                # Every attempt is announced, in order, before there are points of later ones.
                self._import(run, attempt, 0, [], "attempt")
            ranks = defaultdict[tuple[int, int], int](int)
            for points in _pieces(file):
                pairs = np.unique(np.stack([points["attempt"], points["rank"]]), axis=1)
                for number, rank in pairs.T.tolist():
                    chosen = (points["attempt"] == number) & (points["rank"] == rank)
                    ranks[number, rank] += 1
                    part = {name: column[chosen] for name, column in points.items()}
                    attempt = next(one for one in run.attempts if one.attempt == number)
                    self._import(run, attempt, rank, [part], str(ranks[number, rank]))
        if run.state in _ENDED:
            request = pb.FinishRunRequest(
                run_id=run.run_id,
                attempt=max((one.attempt for one in run.attempts), default=1),
                state=run.state,
                end_time=run.end_time,
            )
            self._call(self._run_service.FinishRun, request)
        return self.run(run.run_id)

    def _create(self, run: pb.Run, experiment: str | None) -> None:
        request = pb.CreateRunRequest(
            run_id=run.run_id,
            experiment=run.experiment,
            name=run.name,
            step_policy=run.step_policy,
            late_policy=run.late_policy,
            parent_run_id=run.parent_run_id,
            start_time=run.start_time,
            user_name=run.user_name,
            host=run.host,
            git_commit=run.git_commit,
            entry_point=run.entry_point,
            entries=[pb.MetadataEntry(fact=pb.Fact(name=IMPORTED_FACT, value="yes"))],
        )
        made = self._call(self._run_service.CreateRun, request)
        if not made.created and IMPORTED_FACT not in made.run.facts:
            raise GatewayError(
                f"the run {run.run_id} is here already; import it under an id of its own "
                "(--new-id, new_id=True)",
                reason="RUN_EXISTS",
            )
        if experiment and made.run.experiment != experiment:  # the gateway keeps where it is
            raise GatewayError(
                f"the run {run.run_id} is here already, in the experiment {made.run.experiment!r}",
                reason="RUN_EXISTS",
            )
        self._write_entries(run.run_id, list(_entries(run)))

    def _import(
        self, run: pb.Run, attempt: pb.Attempt, rank: int, parts: list[_Points], name: str
    ) -> None:
        """Store points of one rank and attempt by a writer of their own."""
        identity = ("import", run.run_id, str(attempt.attempt), str(rank), name)

        def send() -> None:
            messages = _messages(run.run_id, attempt, rank, parts, derived_identifier(*identity))
            try:
                self._metric_service.ImportMetrics(iter(messages), metadata=self._metadata)
            except grpc.RpcError as error:
                fault = gateway_error(error)
                if fault.reason != "WRITER_FINISHED":  # then all of it is stored already
                    raise fault from error

        retried(send, patience_s=self._patience_s)


def _run_of(file: Any, path: Path) -> pb.Run:
    metadata = file.schema_arrow.metadata or {}
    if metadata.get(FORMAT_METADATA) != FORMAT.encode():
        found = metadata.get(FORMAT_METADATA)
        raise HeadraceError(
            f"{path} has format {found!r} in {FORMAT_METADATA.decode()!r}; it must be {FORMAT!r}, "
            "as `headrace runs export` writes it"
        )
    return json_format.Parse(metadata[RUN_METADATA], pb.Run(), ignore_unknown_fields=True)


def _pieces(file: Any) -> Iterator[_Points]:
    """The points of the file, in pieces that are always the same; keys as Python strings."""
    for batch in file.iter_batches(batch_size=READ_POINTS):
        columns = {name: batch.column(name) for name in batch.schema.names}
        keys = columns.pop("key")
        yield {
            "key": np.array(keys.cast("string").to_pylist(), dtype=object),
            "time": columns.pop("time").cast("int64").to_numpy(),
            **{name: column.to_numpy() for name, column in columns.items()},
        }


def _entries(run: pb.Run) -> Iterator[pb.MetadataEntry]:
    yield from (pb.MetadataEntry(param=item) for item in run.params)
    yield from (pb.MetadataEntry(tag=item) for item in run.tags)
    yield from (pb.MetadataEntry(summary=item) for item in run.summary)
    yield from (pb.MetadataEntry(dataset=item) for item in run.datasets)
    for name, value in run.facts.items():
        yield pb.MetadataEntry(fact=pb.Fact(name=name, value=value))
    if run.notes:
        yield pb.MetadataEntry(notes=run.notes)


def _messages(
    run_id: str, attempt: pb.Attempt, rank: int, parts: list[_Points], writer_id: str
) -> Iterator[metrics_pb.ImportMetricsRequest]:
    """The conversation of one import; every batch is one record."""
    yield metrics_pb.ImportMetricsRequest(
        open=metrics_pb.OpenWriter(
            run_id=run_id,
            writer_id=writer_id,
            incarnation=derived_identifier("incarnation", writer_id),
            rank=rank,
            attempt=attempt.attempt,
            resume_step=attempt.resume_step if attempt.HasField("resume_step") else None,
            resume_exempt_keys=attempt.resume_exempt_keys,
        )
    )
    sequence = 0
    indexes: dict[str, int] = {}
    for points in parts:
        for start in range(0, len(points["step"]), BATCH_POINTS_MAX):
            batch = {
                key: column[start : start + BATCH_POINTS_MAX] for key, column in points.items()
            }
            keys = batch["key"].tolist()
            new = [key for key in dict.fromkeys(keys) if key not in indexes]
            indexes |= {key: len(indexes) + number for number, key in enumerate(new)}
            for first in range(0, len(new), KEYS_PER_MESSAGE):
                definitions = [
                    metrics_pb.KeyDefinition(index=indexes[key], key=key)
                    for key in new[first : first + KEYS_PER_MESSAGE]
                ]
                yield metrics_pb.ImportMetricsRequest(keys=metrics_pb.DefineKeys(keys=definitions))
            sequence += 1
            yield metrics_pb.ImportMetricsRequest(
                batch=metrics_pb.MetricBatch(
                    first_sequence=sequence,
                    record_count=1,
                    series_index=[indexes[key] for key in keys],
                    step=batch["step"].tolist(),
                    time_unix_us=batch["time"].tolist(),
                    value=batch["value"].tolist(),
                )
            )
    yield metrics_pb.ImportMetricsRequest(finish=metrics_pb.FinishWriter(last_sequence=sequence))
