"""The chart of a result, made from its JSON alone."""

import json
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

BARS: Final = (
    ("executemany_points_per_s", "executemany, rows, indexed", "#9aa5b1"),
    ("copy_rows_indexed_points_per_s", "raw binary COPY, rows, indexed", "#9aa5b1"),
    ("copy_rows_unindexed_points_per_s", "raw binary COPY, rows, no index", "#9aa5b1"),
    ("ingest_wide_points_per_s", "Headrace, one run, 50,000 keys a step", "#3c78b4"),
    ("ingest_clients_64_points_per_s", "Headrace, 64 Python clients", "#3c78b4"),
    ("ingest_raw_64x1000_points_per_s", "Headrace, 64 raw streams", "#1f4e79"),
)


def draw(result: Path, target: Path) -> None:
    """Draw the ingest rates of a result file as bars from low to high.

    Args:
        result: the JSON of `Results.write`.
        target: .png or .svg.
    """
    document = json.loads(result.read_text(encoding="utf-8"))
    figures, spread = document["figures"], document["spread"]
    bars = [bar for bar in BARS if bar[0] in figures]
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
