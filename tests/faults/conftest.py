"""Prints the table of faults that were survived, and keeps the one of a whole long run."""

import json
from pathlib import Path
from typing import Final

import pytest

from tests.faults.outcomes import OUTCOMES

_RESULT: Final = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Add a section when there is something to tell; write the result when it is one."""
    if not OUTCOMES.rows:
        return
    terminalreporter.section("faults and outcomes")
    for line in OUTCOMES.lines():
        terminalreporter.line(line)
    whole = all(Path(name).is_dir() for name in config.args) and not config.option.keyword
    if config.getoption("--long") and whole and exitstatus == 0:
        _RESULT.write_text(json.dumps(OUTCOMES.document(), indent=2) + "\n", encoding="utf-8")
        terminalreporter.line(f"written to {_RESULT}")
