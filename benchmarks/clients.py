"""Points per second of each client, from one process: `python -m benchmarks.clients`.

Each conformance runner logs records of 20 series as fast as its library takes them,
through its default options, and finishes. The clock runs from the first log call
until `finish` is answered: everything is committed then, and is counted in the
database. Client, gateway and PostgreSQL share this machine's cores, so a row says
what is left for the client; its CPU time per point does not depend on that. Rounds
of all clients are interleaved; the median is reported.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from benchmarks.site import Site
from tests.conformance.clients import ROOT, Client, all_clients

SERIES: Final = 20
RECORDS: Final = 200_000
RECORDS_OF_SLOW: Final = 25_000
SLOW: Final = frozenset({"python-stubs"})
"""Clients that build each batch element by element in Python."""

COUNT: Final = "SELECT sum(accepted_points) FROM writers WHERE run_id = $1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One round of one client."""

    client: str
    points: int
    points_per_s: float
    log_ns_per_point: float
    cpu_ns_per_point: float


def scenario(records: int) -> dict[str, Any]:
    """Return a scenario of one writer that logs so many records."""
    ids = {name: uuid.uuid4().hex for name in ("run_id", "writer_id", "incarnation")}
    return {
        "description": "throughput",
        "steps": [
            {"do": "create_run", "run_id": ids["run_id"]},
            {"do": "open_writer", "writer": "w", **ids},
            {"do": "log", "writer": "w", "points": [[0, {"warm": 1}]]},
            {"do": "flush", "writer": "w"},
            {"do": "log", "writer": "w", "first_step": 0, "count": records, "keys": SERIES},
            {"do": "finish", "writer": "w", "deadline_ms": 120_000},
        ],
    }


async def measure(client: Client, site: Site, directory: Path) -> Row:
    """Run one round.

    Raises:
        RuntimeError: a step failed, or a point is missing.
    """
    records = RECORDS_OF_SLOW if client.name in SLOW else RECORDS
    document = scenario(records)
    file = directory / f"{uuid.uuid4().hex}.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    arguments = ["--address", site.address, "--scenario", file, "--directory", directory]
    result, cpu_s = await asyncio.to_thread(_run, [*client.run, *map(str, arguments)])
    steps = result["steps"]
    if errors := [step["error"] for step in steps if step.get("error")]:
        raise RuntimeError(f"{client.name}: {errors}")
    points = records * SERIES
    connection = await asyncpg.connect(site.dsn)
    stored = await connection.fetchval(COUNT, uuid.UUID(document["steps"][0]["run_id"]))
    await connection.close()
    if stored != points + 1:
        raise RuntimeError(f"{client.name}: {stored} points stored of {points + 1}")
    elapsed_ms = steps[-2]["elapsed_ms"] + steps[-1]["elapsed_ms"]
    return Row(
        client=client.name,
        points=points,
        points_per_s=round(points / elapsed_ms * 1e3),
        log_ns_per_point=round(steps[-2]["elapsed_ms"] * 1e6 / points, 1),
        cpu_ns_per_point=round(cpu_s * 1e9 / points, 1),
    )


def _run(command: list[str]) -> tuple[dict[str, Any], float]:
    """Run a runner; return its result and its CPU seconds, those of its children included."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as (
        process
    ):
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    result: dict[str, Any] = json.loads(output.splitlines()[-1])["result"]
    return result, usage.ru_utime + usage.ru_stime


async def main() -> None:
    """Measure the chosen clients and print and write their rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients")
    parser.add_argument("--clients", default="", help="names, separated by commas; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/clients.json")
    chosen = parser.parse_args()
    names = set(filter(None, chosen.clients.split(",")))
    clients = [
        client
        for client in all_clients(optimized=True)
        if not client.missing_tools and (not names or client.name in names)
    ]
    rows: list[Row] = []
    for client in clients:
        client.make()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        async with Site.open() as site:
            for _ in range(chosen.rounds):
                for client in clients:
                    rows.append(await measure(client, site, Path(directory)))
                    print(rows[-1], file=sys.stderr, flush=True)
    medians = [_median([row for row in rows if row.client == client.name]) for client in clients]
    chosen.output.write_text(
        json.dumps({"cores": os.cpu_count(), "rows": [asdict(row) for row in medians]}, indent=1)
        + "\n",
        encoding="utf-8",
    )
    print("| client | points/s | log, ns/point | client CPU, ns/point |\n|---|---|---|---|")
    for row in medians:
        print(
            f"| {row.client} | {row.points_per_s / 1e6:.2f}M | {row.log_ns_per_point:.0f} "
            f"| {row.cpu_ns_per_point:.0f} |"
        )


def _median(rows: list[Row]) -> Row:
    return Row(
        client=rows[0].client,
        points=rows[0].points,
        points_per_s=statistics.median(row.points_per_s for row in rows),
        log_ns_per_point=statistics.median(row.log_ns_per_point for row in rows),
        cpu_ns_per_point=statistics.median(row.cpu_ns_per_point for row in rows),
    )


if __name__ == "__main__":
    asyncio.run(main())
