"""The charts of a result, made from its JSON alone."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BARS: Final = (
    ("mlflow_log_metric_points_per_s", "MLflow, a call a point", "#c9a66b"),
    ("mlflow_log_batch_points_per_s", "MLflow, batches of 1,000", "#c9a66b"),
    ("executemany_points_per_s", "executemany, rows, indexed", "#9aa5b1"),
    ("copy_rows_indexed_points_per_s", "raw binary COPY, rows, indexed", "#9aa5b1"),
    ("copy_rows_unindexed_points_per_s", "raw binary COPY, rows, no index", "#9aa5b1"),
    ("victoriametrics_points_per_s", "VictoriaMetrics, faster import", "#c9a66b"),
    ("ingest_wide_points_per_s", "Headrace, one run, 50,000 keys a step", "#3c78b4"),
    ("ingest_clients_64_points_per_s", "Headrace, 64 Python clients", "#3c78b4"),
    ("ingest_raw_64x1000_points_per_s", "Headrace, 64 raw streams", "#1f4e79"),
)


def draw(result: Path, target: Path) -> bool:
    """Draw the ingest rates of a result file as bars from low to high.

    Args:
        result: the JSON of `Results.write`.
        target: .png or .svg.

    Returns:
        Whether the result has a rate to draw.
    """
    document = json.loads(result.read_text(encoding="utf-8"))
    figures, spread = document["figures"], document["spread"]
    bars = [bar for bar in BARS if bar[0] in figures]
    if not bars:
        return False
    chart, axes = plt.subplots(figsize=(9, 0.62 * len(bars) + 1.6), layout="constrained")
    rates = [figures[name] for name, _label, _colour in bars]
    for row, (name, _label, colour) in enumerate(bars):
        rate, ends = figures[name], spread.get(name, {})
        # Figures are rounded and ends are not: never below nothing.
        below = max(0.0, rate - ends.get("low", rate))
        above = max(0.0, ends.get("high", rate) - rate)
        axes.barh(row, rate, xerr=[[below], [above]], color=colour, ecolor="#222222", capsize=3)
        axes.text(
            rate + above + 0.015 * max(rates),
            row,
            f"{rate:,.0f}",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(bars)), [label for _name, label, _colour in bars])
    axes.set_xlim(0, 1.2 * max(rates, default=1))
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value / 1e6:g}M")
    axes.set_xlabel("points per second, committed durably (median, low to high)")
    axes.spines[["top", "right"]].set_visible(False)
    machine, versions = document["machine"], document["versions"]
    axes.set_title(
        f"{machine['cores']} cores, load generator included; "
        f"PostgreSQL {document['postgres']['server_version']}, commit {versions['commit']}",
        fontsize=9,
        loc="left",
    )
    chart.savefig(target, dpi=150)
    plt.close(chart)
    return True


def draw_page(document: Mapping[str, Any], directory: Path) -> Iterator[Path]:
    """Draw the charts of docs/benchmarks.md that the result has figures for; yield their paths."""
    directory.mkdir(exist_ok=True)
    figures: Mapping[str, float] = document["figures"]
    for name, paint in (("streams", _streams), ("offered", _offered)):
        chart, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        if paint(axes, figures):
            axes.spines[["top", "right"]].set_visible(False)
            path = directory / f"{name}.svg"
            chart.savefig(path, metadata={"Date": None})
            yield path
        plt.close(chart)


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
    axes.plot(list(rates), list(rates.values()), "o-", color="#1f4e79", label="points/s")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xticks(list(rates), [f"{streams:,}" for streams in rates])
    axes.set_xlabel("concurrent streams")
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value / 1e6:g}M")
    axes.set_ylabel("points/s committed")
    right = axes.twinx()
    right.plot(list(memory_mb), list(memory_mb.values()), "s--", color="#c9a66b")
    right.set_ylim(bottom=0)
    right.set_ylabel("gateway memory, MB (dashed)")
    right.spines[["top"]].set_visible(False)
    return bool(rates)


def _offered(axes: Axes, figures: Mapping[str, float]) -> bool:
    for suffix, label, style in (
        ("_ack_p99_ms", "p99", "o-"),
        ("_ack_p50_ms", "p50", "s--"),
    ):
        latencies = _numbered(figures, "offered_", suffix)
        axes.plot(list(latencies), list(latencies.values()), style, label=label, color="#1f4e79")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value / 1e6:g}M")
    axes.set_xlabel("offered points/s, 64 streams")
    axes.set_ylabel("due to acknowledged, ms")
    axes.legend(frameon=False)
    return bool(_numbered(figures, "offered_", "_ack_p99_ms"))
