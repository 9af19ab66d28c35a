"""The charts of a result, made from its JSON alone."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.results import shown

mpl.rcParams["svg.hashsalt"] = "headrace"  # the same result draws the same file

OWN: Final = "#1f4e79"
POSTGRES: Final = "#9aa5b1"
OTHERS: Final = "#c9a66b"
BARS: Final = (
    ("mlflow_log_metric_points_per_s", "MLflow, a call a point", OTHERS),
    ("mlflow_log_batch_points_per_s", "MLflow, batches of 1,000", OTHERS),
    ("victoriametrics_points_per_s", "VictoriaMetrics, faster import (in memory)", OTHERS),
    ("executemany_points_per_s", "PostgreSQL, executemany, indexed", POSTGRES),
    ("copy_rows_indexed_points_per_s", "PostgreSQL, binary COPY, indexed", POSTGRES),
    ("copy_rows_unindexed_points_per_s", "PostgreSQL, binary COPY, no index", POSTGRES),
    ("ingest_wide_points_per_s", "Headrace, one run, 50,000 keys a step", OWN),
    ("ingest_clients_64_points_per_s", "Headrace, 64 Python trainers", OWN),
    ("ingest_raw_64x1000_points_per_s", "Headrace, 64 raw streams", OWN),
)
"""Rates by figure, from the lowest bar to the highest."""


def draw(result: Path, target: Path) -> bool:
    """Draw the ingest rates of a result file as bars.

    Args:
        result: the JSON of `Results.write`.
        target: .png or .svg.

    Returns:
        Whether the result has a rate to draw.
    """
    document = json.loads(result.read_text(encoding="utf-8"))
    chart, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    drawn = _rates(axes, document)
    if drawn:
        chart.savefig(target, dpi=150)
    plt.close(chart)
    return drawn


def draw_page(document: Mapping[str, Any], directory: Path) -> Iterator[Path]:
    """Draw the charts of docs/benchmarks.md that the result has figures for; yield their paths."""
    directory.mkdir(exist_ok=True)
    figures: Mapping[str, float] = document["figures"]
    for name, size, paint, shown_of in (
        ("rates", (9, 4.6), _rates, document),
        ("streams", (8, 3.8), _streams, figures),
        ("offered", (8, 3.8), _offered, figures),
    ):
        chart, axes = plt.subplots(figsize=size, layout="constrained")
        if paint(axes, shown_of):
            path = directory / f"{name}.svg"
            chart.savefig(path, metadata={"Date": None})
            yield path
        plt.close(chart)


def _rates(axes: Axes, document: Mapping[str, Any]) -> bool:
    figures, spread = document["figures"], document["spread"]
    bars = [bar for bar in BARS if bar[0] in figures]
    greatest = max((figures[name] for name, _label, _colour in bars), default=1)
    for row, (name, _label, colour) in enumerate(bars):
        rate, ends = figures[name], spread.get(name, {})
        # Figures are rounded and ends are not: never below nothing.
        below = max(0.0, rate - ends.get("low", rate))
        above = max(0.0, ends.get("high", rate) - rate)
        axes.barh(row, rate, height=0.66, color=colour)
        if below or above:
            axes.errorbar(rate, row, xerr=[[below], [above]], color="#222222", lw=1, capsize=3)
        axes.text(rate + above + 0.01 * greatest, row, shown(rate), va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [label for _name, label, _colour in bars])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.15 * greatest)
    axes.xaxis.set_major_formatter(_millions)
    axes.set_xlabel("points per second, acknowledged (median; line: lowest to highest round)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{document['machine']['cores']} cores, load generator included;"
        f" PostgreSQL {document['postgres']['server_version']}",
        fontsize=10,
        loc="left",
    )
    return bool(bars)


def _millions(value: float, _position: float) -> str:
    return f"{value / 1e6:g}M" if value else "0"


def _numbered(figures: Mapping[str, float], prefix: str, suffix: str) -> dict[int, float]:
    """Return the figures `prefix_N_suffix` by N, ascending."""
    found = {
        int(number): value
        for name, value in figures.items()
        if name.startswith(prefix)
        and name.endswith(suffix)
        and (number := name[len(prefix) : -len(suffix)]).isdecimal()
    }
    return dict(sorted(found.items()))


def _streams(axes: Axes, figures: Mapping[str, float]) -> bool:
    rates = _numbered(figures, "sweep_streams_", "_points_per_s")
    memory_mb = _numbered(figures, "sweep_streams_", "_rss_mb")
    axes.plot(list(rates), list(rates.values()), "o-", color=OWN)
    for streams, rate in rates.items():
        axes.annotate(shown(rate), (streams, rate), (0, 7), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.2 * max(rates.values(), default=1))
    axes.set_xticks(list(rates), [f"{streams:,}" for streams in rates])
    axes.minorticks_off()
    axes.set_xlabel("concurrent streams, saturated")
    axes.yaxis.set_major_formatter(_millions)
    axes.set_ylabel("points/s committed", color=OWN)
    axes.spines[["top"]].set_visible(False)
    right = axes.twinx()
    right.plot(list(memory_mb), list(memory_mb.values()), "s--", color=OTHERS)
    right.set_ylim(0, 5 * max(memory_mb.values(), default=1))
    right.set_ylabel("gateway memory, MB (dashed)", color="#8a6d33")
    right.spines[["top"]].set_visible(False)
    return bool(rates)


def _offered(axes: Axes, figures: Mapping[str, float]) -> bool:
    for suffix, label, style in (("_ack_p99_ms", "p99", "o-"), ("_ack_p50_ms", "p50", "s--")):
        latencies = _numbered(figures, "offered_", suffix)
        axes.plot(list(latencies), list(latencies.values()), style, label=label, color=OWN)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(latencies), [shown(offered) for offered in latencies])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_xlabel("offered points/s, 64 streams")
    axes.set_ylabel("due to acknowledged, ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return len(latencies) > 1
