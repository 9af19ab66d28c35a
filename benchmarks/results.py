"""The result of a run of benchmarks: rounds, medians, targets, JSON, table.

`Results` is written after every round, so that an interrupted run keeps what
it found. `figures` maps flat names to numbers, medians over rounds; names end
in their unit.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the project promises about a figure.

    Attributes:
        figure: the figure's name.
        at_least: true when the figure must reach `bound`, false when it must
            stay below it.
        bound: in the figure's unit.
        claim: for the table.
    """

    figure: str
    at_least: bool
    bound: float
    claim: str

    def is_met(self, value: float) -> bool:
        """Whether `value` keeps the promise."""
        return value >= self.bound if self.at_least else value < self.bound


TARGETS: Final = (
    Target(
        figure="ratio_raw_to_copy_indexed",
        at_least=True,
        bound=7.0,
        claim="64 streams: x raw COPY of rows, indexed",
    ),
    Target(
        figure="ratio_raw_to_copy_unindexed",
        at_least=True,
        bound=1.3,
        claim="64 streams: x raw COPY of rows, unindexed",
    ),
    Target(
        figure="ratio_raw_to_mlflow_log_batch",
        at_least=True,
        bound=250,
        claim="64 streams: x MLflow, batches of 1,000",
    ),
    Target(
        figure="ratio_raw_to_mlflow_log_metric",
        at_least=True,
        bound=20_000,
        claim="64 streams: x MLflow, a call a point",
    ),
    Target(
        figure="ratio_raw_to_victoriametrics",
        at_least=True,
        bound=1.5,
        claim="64 streams: x VictoriaMetrics' faster text import",
    ),
    Target(
        figure="ratio_mlflow_to_our_bytes_per_point",
        at_least=True,
        bound=10,
        claim="MLflow's bytes per point: x ours",
    ),
    Target(
        figure="rss_mb_5000_streams",
        at_least=False,
        bound=400,
        claim="gateway of one process with 5,000 idle streams: MB",
    ),
    Target(
        figure="ingest_after_growth_ratio",
        at_least=True,
        bound=0.8,
        claim="ingest after growth: x before",
    ),
    Target(
        figure="ingest_wide_points_per_s",
        at_least=True,
        bound=120_000,
        claim="one run, 50,000 keys a step: points/s",
    ),
    Target(
        figure="ack_p99_ms_at_100k",
        at_least=False,
        bound=150,
        claim="acknowledgement at 100,000 points/s: p99 ms",
    ),
    Target(
        figure="artifact_proxy_ratio",
        at_least=True,
        bound=0.6,
        claim="upload through the gateway: x aioboto3",
    ),
    Target(
        figure="artifact_direct_ratio",
        at_least=True,
        bound=0.95,
        claim="upload past the gateway, verified: x aioboto3",
    ),
    Target(
        figure="artifact_rss_growth_mb",
        at_least=False,
        bound=268,
        claim="memory that uploads add to the gateway: MB",
    ),
    Target(
        figure="ack_p99_ratio_with_16_uploads",
        at_least=False,
        bound=2.0,
        claim="acknowledgement p99 beside 16 uploads: x alone",
    ),
    Target(
        figure="idle_stream_bytes",
        at_least=False,
        bound=60_000,
        claim="memory of an idle stream: bytes",
    ),
    Target(
        figure="log_call_10_scalars_us",
        at_least=False,
        bound=10,
        claim="log() of 10 scalars back to back, median: us",
    ),
    Target(
        figure="search_page_100k_runs_ms",
        at_least=False,
        bound=100,
        claim="a typical search among 100,000 runs: ms",
    ),
    Target(
        figure="compacted_bytes_per_point",
        at_least=False,
        bound=40,
        claim="a point a second, compacted: bytes/point",
    ),
)

RATIOS: Final = {
    "ratio_raw_to_copy_indexed": (
        "ingest_raw_64x1000_points_per_s",
        "copy_rows_indexed_points_per_s",
    ),
    "ratio_raw_to_copy_unindexed": (
        "ingest_raw_64x1000_points_per_s",
        "copy_rows_unindexed_points_per_s",
    ),
    "ratio_raw_to_copy_indexed_best": (
        "ingest_raw_64x1000_points_per_s",
        "copy_rows_indexed_best_points_per_s",
    ),
    "ratio_raw_to_copy_unindexed_best": (
        "ingest_raw_64x1000_points_per_s",
        "copy_rows_unindexed_best_points_per_s",
    ),
    "ratio_raw_to_mlflow_log_batch": (
        "ingest_raw_64x1000_points_per_s",
        "mlflow_log_batch_points_per_s",
    ),
    "ratio_raw_to_mlflow_log_metric": (
        "ingest_raw_64x1000_points_per_s",
        "mlflow_log_metric_points_per_s",
    ),
    "ratio_raw_to_victoriametrics": (
        "ingest_raw_64x1000_points_per_s",
        "victoriametrics_points_per_s",
    ),
    "ratio_mlflow_to_our_bytes_per_point": ("mlflow_bytes_per_point", "bytes_per_point"),
    "artifact_proxy_ratio": ("artifact_proxy_mib_per_s", "artifact_aioboto3_mib_per_s"),
    "artifact_direct_ratio": ("artifact_direct_mib_per_s", "artifact_aioboto3_mib_per_s"),
    "ack_p99_ratio_with_16_uploads": ("ack_p99_ms_with_16_uploads", "ack_p99_ms_without_uploads"),
    "ack_p99_ratio_with_16_uploads_to_s3": (
        "ack_p99_ms_with_16_uploads_to_s3",
        "ack_p99_ms_without_uploads",
    ),
    "ratio_raw_to_executemany": ("ingest_raw_64x1000_points_per_s", "executemany_points_per_s"),
    "ratio_copy_indexed_to_our_bytes_per_point": (
        "copy_rows_indexed_bytes_per_point",
        "bytes_per_point",
    ),
}
"""Figures made of two others: of the medians, since rounds of a shared machine do not pair."""


@dataclass(slots=True, kw_only=True)
class Results:
    """Everything that one run of benchmarks found.

    Attributes:
        context: machine, versions, settings, parameters: plain JSON.
        rounds: for each scenario its rounds, each figures by name.
        seconds: for each scenario what its rounds took.
        failures: for each scenario that could not be measured, why.
        skipped: for each whose peer is not installed, how to install it.
    """

    context: dict[str, object]
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def gave_up(self, scenario: str) -> bool:
        """Whether another round of a scenario would be in vain."""
        return scenario in self.failures or scenario in self.skipped

    def add(self, scenario: str, figures: dict[str, float], *, seconds: float) -> None:
        """Add a round, and what it took."""
        self.rounds.setdefault(scenario, []).append(figures)
        self.seconds.setdefault(scenario, []).append(round(seconds, 1))

    def samples(self) -> dict[str, list[float]]:
        """Return every figure's values, one a round."""
        found: dict[str, list[float]] = {}
        for rounds in self.rounds.values():
            for figures in rounds:
                for name, value in figures.items():
                    found.setdefault(name, []).append(value)
        return found

    def figures(self) -> dict[str, float]:
        """Return the medians, and the ratios between them; maxima stay maxima."""
        found = {
            name: max(values) if name.endswith("_max") else median(values)
            for name, values in self.samples().items()
        }
        for table in ("unindexed", "indexed"):
            ways = [
                name for name in found if name.startswith(f"copy_rows_{table}_") and "per_s" in name
            ]
            if len(ways) > 1:
                found[f"copy_rows_{table}_best_points_per_s"] = max(found[name] for name in ways)
        for name, (upper, lower) in RATIOS.items():
            if upper in found and found.get(lower):
                found[name] = found[upper] / found[lower]
        return dict(sorted(found.items()))

    def write(self, path: Path) -> None:
        """Write the result as JSON."""
        figures = self.figures()
        spread = {
            name: {"low": min(values), "high": max(values), "rounds": len(values)}
            for name, values in sorted(self.samples().items())
        }
        document = {
            **self.context,
            "figures": {name: round(value, 3) for name, value in figures.items()},
            "spread": spread,
            "targets": {
                target.figure: {
                    "bound": target.bound,
                    "at_least": target.at_least,
                    "met": target.is_met(figures[target.figure]),
                }
                for target in TARGETS
                if target.figure in figures
            },
            "rounds": self.rounds,
            "seconds": self.seconds,
            "failures": self.failures,
            "skipped": self.skipped,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    def print(self, console: Console) -> None:
        """Print all figures with their spread, then the promises."""
        samples, figures = self.samples(), self.figures()
        table = Table("figure", "median", "low", "high", title="Figures", title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, value in figures.items():
            values = samples.get(name, [])
            spread = [_number(min(values)), _number(max(values))] if len(values) > 1 else ["", ""]
            table.add_row(name, _number(value), *spread)
        console.print(table)
        promises = Table("promise", "bound", "measured", "", title="Promises", title_justify="left")
        for target in TARGETS:
            bound = f"{'≥' if target.at_least else '<'} {_number(target.bound)}"
            if target.figure not in figures:
                continue
            value = figures[target.figure]
            mark = "[green]✓[/]" if target.is_met(value) else "[red]✗[/]"
            promises.add_row(target.claim, bound, _number(value), mark)
        if {"connections_max", "connections_budget"} <= figures.keys():
            seen, budget = figures["connections_max"], figures["connections_budget"]
            promises.add_row(
                "database connections, all scenarios",
                f"= {budget:.0f}",
                f"{seen:.0f}",
                "[green]✓[/]" if seen == budget else "[red]✗[/]",
            )
        console.print(promises)
        unmeasured = sum(target.figure not in figures for target in TARGETS)
        if unmeasured:
            console.print(f"{unmeasured} promises are of scenarios that did not run")
        for scenario, reason in self.skipped.items():
            console.print(f"[yellow]{scenario} was skipped:[/] {reason}")
        for scenario, reason in self.failures.items():
            console.print(f"[red]{scenario} could not be measured:[/] {reason}")


def shown(value: float | None, unit: str = "") -> str:
    """Return a number as a reader wants it: three figures that count."""
    if value is None:
        return "not measured"
    if unit == "ms" and value >= 10_000:
        return f"{value / 1e3:.3g} s"
    if value >= 1e6:
        text = f"{value / 1e6:.2f}M"
    elif value >= 10_000:
        text = f"{value / 1e3:,.0f}k"
    elif value >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return f"{text} {unit}".strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"
