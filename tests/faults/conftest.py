"""Prints the table of faults that were survived."""

import pytest

from tests.faults.outcomes import OUTCOMES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add a section when there is something to tell."""
    if OUTCOMES.rows:
        terminalreporter.section("faults and outcomes")
        for line in OUTCOMES.lines():
            terminalreporter.line(line)
