"""What the demo shows: live progress, the best runs, the learning curves, the audit."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import headrace
import matplotlib as mpl
import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from examples.demo.audit import Finding
from examples.demo.jobs import Job

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

RATE_WINDOW_S: Final = 2.0
BEST_RUNS: Final = 8
OVERLAP_STEPS: Final = 60
"""How much of a restart the chart shows before the resume step; twice as much after."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """The live view. `update` and `tell` feed it; rich draws it.

    Attributes:
        console: where the story is told, above the numbers.
        jobs: all jobs.
        expected_points: what they log when nothing repeats.
    """

    console: Console
    jobs: Sequence[Job]
    expected_points: int
    _began: float = field(default_factory=time.monotonic)
    _row: tuple[str, ...] = ("", "", "", "", "", "")
    _logged_points: int = 0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def tell(self, event: str) -> None:
        """Add a line to the story."""
        self.console.print(f"[dim]{time.monotonic() - self._began:5.1f} s[/]  {event}")

    def update(
        self,
        *,
        now: float,
        processes: int,
        started: int,
        logged_points: int,
        stored_points: int,
        connections: int,
    ) -> None:
        """Take the newest numbers."""
        self._seen.append((now, stored_points))
        while now - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()
        seconds = max(now - self._seen[0][0], 0.1)
        rate = (stored_points - self._seen[0][1]) / seconds
        self._logged_points = logged_points
        self._row = (
            f"{len(self.jobs)}",
            f"{processes} of {started}",
            f"{stored_points:,}",
            f"{max(rate, 0):,.0f}",
            f"{max(logged_points - stored_points, 0):,}",
            f"{connections}",
        )

    def __rich__(self) -> RenderableType:
        table = Table("jobs", "processes", "points stored", "points/s", "pending", "db connections")
        for column in table.columns:
            column.justify = "right"
        table.add_row(*self._row)
        bar = ProgressBar(total=self.expected_points, completed=self._logged_points, width=78)
        return Group(table, bar)


def print_best_runs(console: Console, address: str, jobs: Sequence[Job]) -> None:
    """Read the last test accuracies through the client and print the best runs."""
    rows = []
    with headrace.Client(address) as client:
        for job in jobs:
            last = {series.key: series for series in client.series(job.run_id)}
            attempts = len(client.run(job.run_id).attempts)
            rows.append((last["test/accuracy"].last_value, last["test/loss"], attempts, job))
    rows.sort(key=lambda row: (-row[0], row[1].last_value))
    table = Table(
        "run", "hidden", "learning\nrate", "batch", "ranks", "attempts", "steps", "test\nloss",
        "test\naccuracy", title=f"\nThe best {BEST_RUNS} of {len(jobs)} runs",
        title_justify="left", box=box.SIMPLE_HEAD,
        collapse_padding=True, pad_edge=False,  # fits 80 columns
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for accuracy, loss, attempts, job in rows[:BEST_RUNS]:
        table.add_row(
            job.name, str(job.hidden), f"{job.learning_rate:g}", str(job.batch_size),
            str(job.ranks), str(attempts), f"{loss.last_step + 1:,}", f"{loss.last_value:.4f}",
            f"{accuracy:.1%}",
        )  # fmt: skip
    console.print(table)


def save_chart(path: Path, address: str, jobs: Sequence[Job]) -> None:
    """Read learning curves through the client and draw them.

    On the left the test accuracy of every job, mean over its ranks, coloured by
    its learning rate; on the right the training loss of the job that was
    killed, by attempts.
    """
    chart, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    with headrace.Client(address) as client:
        rates = np.array([job.learning_rate for job in jobs])
        colours = ScalarMappable(LogNorm(rates.min(), rates.max()), "viridis_r")
        for job, colour in zip(jobs, colours.to_rgba(rates), strict=True):
            (curve,) = client.read(job.run_id, ["test/accuracy"], aggregate="mean")
            epochs = (curve.step + 1) / (curve.step[0] + 1)
            left.plot(epochs, curve.value, color=colour, linewidth=0.8)
        restarted = next(job for job in jobs if len(client.run(job.run_id).attempts) > 1)
        resume_step = client.run(restarted.run_id).attempts[-1].resume_step or 0
        stored = client.read(restarted.run_id, ["train/loss"], include_hidden=True)
    chart.colorbar(colours, ax=left, label="learning rate")
    near = (resume_step - OVERLAP_STEPS, resume_step + 2 * OVERLAP_STEPS)
    for series in stored:
        shown = (series.step >= near[0]) & (series.step <= near[1])
        right.plot(
            series.step[shown],
            series.value[shown],
            linewidth=1.2,
            label=f"attempt {series.attempt}",
        )
    right.axvline(resume_step, color="#c0392b", linewidth=1)
    right.annotate(
        " attempt 2 resumes; from here\n attempt 1 is hidden from reads",
        (resume_step, 0.97),
        xycoords=("data", "axes fraction"),
        va="top",
        fontsize=8,
    )
    right.set_ylim(top=1.3 * right.get_ylim()[1])  # room for what is written there
    left.set(title=f"test accuracy, {len(jobs)} jobs", xlabel="epoch", ylim=(0.5, 1.0))
    right.set(title=f"training loss of {restarted.name}, killed once", xlabel="step", xlim=near)
    right.legend(frameon=False, fontsize=8, loc="upper right")
    chart.savefig(path, dpi=130)
    plt.close(chart)


def print_audit(console: Console, findings: Sequence[Finding]) -> None:
    """Print the audit."""
    table = Table(
        "audit",
        "found",
        "",
        title="Every point is counted",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.columns[1].justify = "right"
    for finding in findings:
        mark = "[green]✓[/]" if finding.holds else "[red]✗[/]"
        table.add_row(finding.claim, finding.found, mark)
    console.print(table)
