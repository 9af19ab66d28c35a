"""Runs the matrix client by scenario; ends with 1 when anything is not as it should be.

Replays run in lanes, two at a time: each lane has a gateway, a database and proxies of
its own, and takes the next cell of the matrix when it is done with one.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gateway.embedded import EmbeddedPostgres, EmbeddedS3
from tests.conformance.cases import Case, all_cases
from tests.conformance.clients import BuildError, Client, all_clients
from tests.conformance.replay import Verdict, check_encoding, replay
from tests.conformance.stage import Stage, prepare

WIRE: Final = "wire vectors"
LANES: Final = 2
_GOOD, _BAD, _NOT_ASKED = "ok", "FAIL", "-"


class Matrix:
    """The cells so far, and what is wrong."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], str] = {}
        self.elapsed_s: defaultdict[str, float] = defaultdict(float)
        self.problems: list[str] = []
        self.notes: list[str] = []

    def add(self, client: Client, column: str, verdict: Verdict) -> None:
        """Fill a cell and say so at once."""
        self.cells[client.name, column] = _BAD if verdict.problems else _GOOD
        self.elapsed_s[client.name] += verdict.elapsed_s
        print(
            f"{_BAD if verdict.problems else _GOOD:5} {client.name:14} {column:18} "
            f"{verdict.elapsed_s:6.2f} s",
            flush=True,
        )
        for problem in verdict.problems:
            print(f"      {problem}", flush=True)
            self.problems.append(f"{client.name}, {column}: {problem}")

    def not_asked(self, client: Client, case: Case, reason: str) -> None:
        """Fill a cell that does not apply."""
        self.cells[client.name, case.name] = _NOT_ASKED
        self.notes.append(f"{client.name}, {case.name}: {reason}")

    def table(self, clients: Sequence[str], columns: Sequence[str]) -> str:
        """Format as text: a line a scenario, a column a client."""
        width = max(len(column) for column in columns) + 2
        head = " " * width + "".join(f"{name:>16}" for name in clients)
        lines = [
            column.ljust(width)
            + "".join(f"{self.cells.get((name, column), ''):>16}" for name in clients)
            for column in columns
        ]
        seconds = "seconds".ljust(width) + "".join(
            f"{self.elapsed_s[name]:>16.1f}" for name in clients
        )
        return "\n".join([head, *lines, seconds])


def ready(clients: list[Client], matrix: Matrix) -> list[Client]:
    """Build the runners; return those that can run. What has its tools must build."""
    able = []
    for client in clients:
        if client.missing_tools:
            missing = ", ".join(client.missing_tools)
            print(f"SKIPPED {client.name}: this machine has no {missing}", flush=True)
            matrix.notes.append(f"SKIPPED {client.name}: this machine has no {missing}")
            continue
        started = time.monotonic()
        try:
            client.make()
        except BuildError as error:
            print(f"{_BAD:5} {client.name:14} build\n{error}", flush=True)
            matrix.problems.append(f"{client.name}: its toolchain is here, and it does not build")
            continue
        print(
            f"{_GOOD:5} {client.name:14} {'build':18} {time.monotonic() - started:6.2f} s",
            flush=True,
        )
        able.append(client)
    return able


async def check_encodings(clients: list[Client], matrix: Matrix) -> None:
    """Fill the row of the wire vectors."""
    for client in clients:
        matrix.add(client, WIRE, await check_encoding(client))


async def run(
    clients: list[Client],
    cases: list[Case],
    matrix: Matrix,
    postgres: EmbeddedPostgres,
    s3: EmbeddedS3,
) -> None:
    """Fill the rows of the cases."""
    await prepare(postgres)
    for auth, tls in ((False, False), (True, False), (False, True)):
        cells = deque(
            (client, case)
            for client in clients
            for case in cases
            if (case.wants("auth"), case.wants("tls")) == (auth, tls)
            and _asked(client, case, matrix)
        )

        async def lane(cells: deque[tuple[Client, Case]], auth: bool, tls: bool) -> None:
            async with Stage.open(postgres, s3, auth=auth, tls=tls) as stage:
                while cells:
                    client, case = cells.popleft()
                    matrix.add(client, case.name, await replay(client, case, stage))

        async with asyncio.TaskGroup() as lanes:
            for _ in range(min(LANES, len(cells))):
                lanes.create_task(lane(cells, auth, tls))


def _asked(client: Client, case: Case, matrix: Matrix) -> bool:
    """Whether the case applies to the client; notes it when it does not."""
    for what in (case.name, *sorted(case.features)):
        if what in client.lacks:
            matrix.not_asked(client, case, client.lacks[what])
            return False
    return True


def main() -> int:
    """Parse the command line, run, print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--clients", default="", help="names, separated by commas; default all")
    parser.add_argument("--cases", default="", help="names, separated by commas; default all")
    chosen = parser.parse_args()
    clients, cases = all_clients(), all_cases()
    names = set(filter(None, chosen.clients.split(",")))
    titles = set(filter(None, chosen.cases.split(",")))
    unknown = names - {client.name for client in clients}
    unknown |= titles - {case.name for case in cases} - {"wire"}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    matrix = Matrix()
    able = ready([client for client in clients if not names or client.name in names], matrix)
    asked = [case for case in cases if not titles or case.name in titles]
    with (
        tempfile.TemporaryDirectory(prefix="headrace-conformance-") as directory,
        EmbeddedPostgres(Path(directory) / "pg", settings={"fsync": "off"}) as postgres,
        EmbeddedS3(Path(directory) / "s3") as s3,
    ):
        if not titles or "wire" in titles:
            asyncio.run(check_encodings(able, matrix))
        asyncio.run(run(able, asked, matrix, postgres, s3))
    columns = [WIRE, *(case.name for case in asked)]
    print("\n" + matrix.table([client.name for client in able], columns) + "\n")
    for line in matrix.notes:
        print(f"note: {line}")
    for line in matrix.problems:
        print(f"{_BAD}: {line}")
    return 1 if matrix.problems else 0


if __name__ == "__main__":
    sys.exit(main())
