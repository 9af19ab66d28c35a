"""Runs scenarios in interleaved rounds: A B C, A B C, …, never A A A.

A scenario that fails in a round is reported and left out of the next; the
others go on. Before each measurement PostgreSQL writes a checkpoint, so that
nobody pays for the round before.
"""

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
        rounds_max: rounds beyond this add nothing, or take too long.
        full: measured only with `--full`, or when it is named.
    """

    name: str
    summary: str
    measure: Measure
    rounds_max: int = 1_000
    full: bool = False


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
    for round_number in range(1, rounds + 1):
        for scenario in scenarios:
            if round_number > scenario.rounds_max or results.gave_up(scenario.name):
                continue
            with console.status(f"round {round_number} of {rounds}: {scenario.name}"):
                await site.checkpoint()
                try:
                    figures = await scenario.measure(site, load)
                except NotInstalledError as error:
                    results.skipped[scenario.name] = str(error)
                    console.print(f"[yellow]{scenario.name} skipped[/]: {error}")
                    continue
                except Exception as error:  # a report is wanted, not a crash
                    results.failures[scenario.name] = f"{type(error).__name__}: {error}"
                    console.print(f"[red]{scenario.name}[/]: {results.failures[scenario.name]}")
                    continue
            figures |= {
                "connections_max": site.connections_max,
                "connections_budget": site.connections_budget,
            }
            results.add(scenario.name, figures)
            results.write(output)
            shown = ", ".join(f"{name} {value:,.0f}" for name, value in figures.items())
            console.print(f"[dim]round {round_number}[/] [bold]{scenario.name}[/]: {shown}")
