"""Runs side by side: what `Client.compare` returns. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headrace.run_info import RunInfo

SYSTEM_PREFIX: Final = "system/"
"""Metrics of the machine, left out unless they are named."""

_AGGREGATES: Final = ("last", "min", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A table.

    Attributes:
        columns: `run_id`, `name`, `experiment`, `state`, then `params.KEY`, then
            `metrics.KEY.last`, `.min` and `.max`, then `summary.KEY`.
        rows: one for each run, by column; what a run does not have is absent.
    """

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with the run's id as index.

        Raises:
            ImportError: pandas is not installed (`pip install headrace[pandas]`).
        """
        import pandas as pd  # noqa: PLC0415 - an extra

        return pd.DataFrame(list(self.rows), columns=list(self.columns)).set_index("run_id")


def compared(
    runs: Sequence[RunInfo], metrics: Sequence[str] = (), *, differing: bool = False
) -> Comparison:
    """Put runs side by side; see `Client.compare`."""
    rows = [_row(run, metrics) for run in runs]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    order = {"params": 1, "metrics": 2, "summary": 3}
    columns.sort(key=lambda name: order.get(name.partition(".")[0], 0))  # stable
    if differing:
        columns = [
            name
            for name in columns
            if not name.startswith("params.") or len({row.get(name) for row in rows}) > 1
        ]
    return Comparison(
        columns=tuple(columns),
        rows=tuple({name: row[name] for name in columns if name in row} for row in rows),
    )


def _row(run: RunInfo, metrics: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run_id": run.run_id,
        "name": run.name,
        "experiment": run.experiment,
        "state": run.state,
    }
    row |= {f"params.{key}": value for key, value in run.params.items()}
    for key, metric in run.metrics.items():
        if key in metrics if metrics else not key.startswith(SYSTEM_PREFIX):
            row |= {f"metrics.{key}.{name}": getattr(metric, name) for name in _AGGREGATES}
    return row | {f"summary.{key}": value for key, value in run.summary.items()}
