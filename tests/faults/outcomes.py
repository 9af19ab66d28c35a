"""The table of faults and what came of them, printed at the end of a run of the fault tests."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One fault that was survived; a test that fails has none.

    Attributes:
        fault: what was done.
        times: how often.
        points: stored in the end, every one exactly once.
        recovery_s: the longest until all writers were acknowledged again.
        seed: replays the order of events; 0: there is no chance in it.
    """

    fault: str
    times: int = 1
    points: int
    recovery_s: float
    seed: int = 0


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
                f"| {row.fault} | {row.times} | {row.points:,} | 0 | 0 |"
                f" {row.recovery_s:.1f} s | {row.seed or ''} |"
                for row in self.rows
            ),
        ]


OUTCOMES = Outcomes()
