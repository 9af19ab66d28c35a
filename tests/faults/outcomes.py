"""The table of faults and what came of them, printed at the end of a run of the fault tests."""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from benchmarks.machine import machine, versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One fault that was survived; a test that fails has none.

    Attributes:
        fault: what was done.
        times: how often.
        points: stored in the end.
        lost, doubled: points, as an oracle counted them; None where none compared every point.
        recovery_s: the longest until all writers were acknowledged again; None where nothing
            was interrupted.
        seed: replays the order of events; None where there is no chance in it.
    """

    fault: str
    times: int = 1
    points: int
    lost: int | None = None
    doubled: int | None = None
    recovery_s: float | None
    seed: int | None = None


@dataclass(slots=True)
class Outcomes:
    """All of a session."""

    rows: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Add a row."""
        self.rows.append(outcome)

    def lines(self) -> list[str]:
        """Return the table as Markdown."""
        return [
            "| fault | times | points | lost | doubled | recovery | seed |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {row.fault} | {row.times} | {row.points:,} | {_cell(row.lost)} |"
                f" {_cell(row.doubled)} | {_cell(row.recovery_s, '.1f', ' s')} |"
                f" {_cell(row.seed)} |"
                for row in self.rows
            ),
        ]

    def document(self) -> dict[str, object]:
        """Return the table as what is written to benchmarks/results/faults.json."""
        found = machine()
        return {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": versions()["commit"],
            "machine": {name: found[name] for name in ("cpu", "cores")},
            "acts": sum(row.times for row in self.rows if row.seed is not None),
            "rows": [asdict(row) for row in self.rows],
        }


OUTCOMES = Outcomes()


def _cell(number: float | None, form: str = "", unit: str = "") -> str:
    return "" if number is None else f"{number:{form}}{unit}"
