"""Runs scenarios in interleaved rounds: A B C, A B C, …, never A A A.

A scenario that fails in a round is reported and left out of the next; the
others go on. Before each measurement PostgreSQL writes a checkpoint, so that
nobody pays for the round before.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.load import Load
from benchmarks.peers.installation import NotInstalledError
from benchmarks.results import Results
from benchmarks.site import Site

Measure = Callable[[Site, Load], Awaitable[dict[str, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Something to measure.

    Attributes:
        name: as in `--scenario`.
        summary: one line for `--list`.
        measure: measures one round and returns figures by name.
        seconds: what a round takes on two cores, to tell how long a run will.
        seconds_brief: the same without `--full`, where that is much less.
        rounds: the most rounds of a full run: further ones add nothing, or take too long.
        rounds_brief: the same without `--full`; 0 leaves it out.
        apart: it has servers of its own; the shared ones are left alone.
    """

    name: str
    summary: str
    measure: Measure
    seconds: float
    rounds: int
    rounds_brief: int
    seconds_brief: float | None = None
    apart: bool = False

    def expected_s(self, *, brief: bool) -> float:
        """Return about how long a round takes."""
        return self.seconds_brief if brief and self.seconds_brief is not None else self.seconds


async def run(
    scenarios: Sequence[Scenario],
    *,
    site: Site,
    load: Load,
    rounds: int,
    results: Results,
    output: Path,
    console: Console,
) -> None:
    """Run the rounds, writing the result after each measurement."""
    wanted = {
        scenario.name: min(rounds, scenario.rounds_brief if load.brief else scenario.rounds)
        for scenario in scenarios
    }
    queue = [
        (number, scenario)
        for once in (False, True)  # what is compared stands close together
        for number in range(1, rounds + 1)
        for scenario in scenarios
        if number <= wanted[scenario.name] and (wanted[scenario.name] == 1) == once
    ]
    began = time.monotonic()
    for position, (number, scenario) in enumerate(queue):
        if results.gave_up(scenario.name):
            continue
        left_s = sum(
            each.expected_s(brief=load.brief)
            for _, each in queue[position:]
            if not results.gave_up(each.name)
        )
        console.print(
            f"[dim]{position + 1} of {len(queue)}, {_clock(time.monotonic() - began)} gone,"
            f" about {_clock(left_s)} left:[/] {scenario.name}, round {number}"
        )
        if not scenario.apart:
            await site.checkpoint()
        started = time.monotonic()
        try:
            figures = await scenario.measure(site, load)
        except NotInstalledError as error:
            results.skipped[scenario.name] = str(error)
            console.print(f"[bold yellow]SKIPPED {scenario.name}[/]: {error}")
            continue
        except Exception as error:  # a report is wanted, not a crash
            results.failures[scenario.name] = f"{type(error).__name__}: {error}"
            console.print(f"[red]{scenario.name}[/]: {results.failures[scenario.name]}")
            continue
        figures |= {
            "connections_max": site.connections_max,
            "connections_budget": site.connections_budget,
        }
        results.add(scenario.name, figures, seconds=time.monotonic() - started)
        results.write(output)
        shown = ", ".join(f"{name} {value:,.0f}" for name, value in figures.items())
        console.print(f"    {shown}", highlight=False)
    results.write(output)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
