"""Runs as Parquet files: part of `headrace.Client`. Needs pyarrow (`headrace[parquet]`).

One file a run, read by anything that reads Parquet:

    key string (dictionary) | rank int32 | attempt int32 | step int64
    | time timestamp[us, UTC] | value float64

every stored point, those that a resume step hides and repeated steps included;
exact duplicates once. The file's metadata has under `headrace.run` the run
(Run of run_service.proto as JSON: params, tags, notes, summary, datasets,
facts, attempts), and under `headrace.format` the version of this layout.
Artifacts are not in it. `Client.import_run` reads it back.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format

from headrace.calls import retried
from headrace.columns import from_message
from headrace.reading import ReadingMethods
from headrace.runs import RunMethods
from headrace.v1 import metric_service_pb2 as metrics_pb
from headrace.v1 import run_service_pb2 as pb

if TYPE_CHECKING:
    import pyarrow

FORMAT: Final = "1"
RUN_METADATA: Final = b"headrace.run"
FORMAT_METADATA: Final = b"headrace.format"

ROW_GROUP_POINTS: Final = 1_000_000
"""Points in a row group, about 34 MB in memory: what an export holds at a time."""


class ExportMethods(ReadingMethods, RunMethods):
    """The methods that write Parquet."""

    def export_run(self, run_id: str, path: str | os.PathLike[str]) -> Path:
        """Write a run to a Parquet file, whole or not at all; return its path.

        Memory is bounded, whatever the run's size.

        Raises:
            GatewayError: RUN_NOT_FOUND, …
            ImportError: pyarrow is not installed.
            OSError: the file cannot be written.
        """
        arrow()
        target = Path(path)
        draft = target.with_name(f".{target.name}.part")
        try:
            retried(lambda: self._write(run_id, draft), patience_s=self._patience_s)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return target

    def export_experiment(
        self, experiment: str | int, directory: str | os.PathLike[str]
    ) -> list[Path]:
        """Write every run of an experiment to `RUN_ID.parquet`; see `export_run`.

        Raises:
            GatewayError: EXPERIMENT_NOT_FOUND, …
            ImportError, OSError: as `export_run`.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        runs = self.search_runs(experiments=[experiment], include_data=False)
        return [self.export_run(run.run_id, folder / f"{run.run_id}.parquet") for run in runs]

    def _write(self, run_id: str, path: Path) -> None:
        pyarrow, parquet = arrow()
        run = self._run_message(run_id)
        run.ClearField("metrics")  # follows from the points
        schema = _schema(pyarrow).with_metadata(
            {
                FORMAT_METADATA: FORMAT.encode(),
                RUN_METADATA: json_format.MessageToJson(run, indent=None).encode(),
            }
        )
        with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in self._tables(run_id, schema):
                writer.write_table(table)

    def _tables(self, run_id: str, schema: "pyarrow.Schema") -> Iterator["pyarrow.Table"]:
        """Yield the points in row groups of bounded size."""
        pyarrow, _ = arrow()
        request = metrics_pb.ReadMetricsRequest(
            run_id=run_id, step_policy=pb.STEP_POLICY_ALL, include_hidden=True
        )
        batches: list[Any] = []
        count = 0
        for message in self._stream(request):
            columns = from_message(message.columns)
            length = len(columns)
            arrays = [
                pyarrow.array([columns.key] * length, schema.field("key").type),
                pyarrow.repeat(pyarrow.scalar(columns.rank, pyarrow.int32()), length),
                pyarrow.repeat(pyarrow.scalar(columns.attempt, pyarrow.int32()), length),
                pyarrow.array(columns.step),
                pyarrow.array(columns.time).cast(schema.field("time").type),
                pyarrow.array(columns.value, from_pandas=False),
            ]
            batches.append(pyarrow.table(arrays, schema=schema))
            count += length
            if count >= ROW_GROUP_POINTS:
                yield pyarrow.concat_tables(batches).unify_dictionaries()
                batches, count = [], 0
        if batches:
            yield pyarrow.concat_tables(batches).unify_dictionaries()


def arrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet.

    Raises:
        ImportError: not installed; says how.
    """
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'headrace[parquet]'") from error
    return pyarrow, parquet


def _schema(pyarrow: Any) -> Any:
    return pyarrow.schema(
        [
            ("key", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
            ("rank", pyarrow.int32()),
            ("attempt", pyarrow.int32()),
            ("step", pyarrow.int64()),
            ("time", pyarrow.timestamp("us", tz="UTC")),
            ("value", pyarrow.float64()),
        ]
    )
