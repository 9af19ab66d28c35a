"""A whole deployment to be mistreated: PostgreSQL, a gateway, writers, and proxies on the wires.

    writers ── wire ──> gateway ── database wire ──> PostgreSQL

`RawSender` and `Trainer` are processes that can be killed and started again and
that journal what they sent; `Scene.check` asks the oracle about all of them.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import numpy as np
import psutil

from benchmarks.plan import Mix
from benchmarks.raw_streams import Traffic
from gateway.embedded import EmbeddedPostgres
from tests.faults import trainer
from tests.support.gateway_process import GatewayProcess
from tests.support.oracle import ConnectionWatch, Oracle
from tests.support.proxy import Proxy

_REPOSITORY: Final = Path(__file__).parents[2]
_END_DEADLINE_S: Final = 60.0


class RawSender:
    """A process of raw streams; a replacement continues the same writers."""

    def __init__(self, address: str, directory: Path, *, seed: int, points_per_s: int) -> None:
        self.traffic = Traffic(
            streams=6,
            series=10,
            batch_points=300,
            window_batches=8,
            points_per_s=points_per_s,
            mix=Mix(swapped=0.1, repeated=0.05, late=0.05, special_values=True),
            resume=True,
            recut=True,
            seed=seed,
        )
        self._address = address
        self._journal = directory / f"raw-{seed}.journal"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        mix = self.traffic.mix
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.raw_streams", self._address),
                *("--streams", str(self.traffic.streams), "--series", str(self.traffic.series)),
                *("--batch-points", str(self.traffic.batch_points), "--resume", "--recut"),
                *("--window-batches", str(self.traffic.window_batches), "--special-values"),
                *("--points-per-s", str(self.traffic.points_per_s)),
                *("--swapped", str(mix.swapped), "--repeated", str(mix.repeated)),
                *("--late", str(mix.late), "--seed", str(self.traffic.seed)),
                *("--journal", str(self._journal)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_REPOSITORY,
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def finish(self) -> dict[str, Any]:
        """Stop sending, wait for the last acknowledgements, return the result."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            output, _ = self._process.communicate(timeout=_END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        assert self._process.returncode == 0, output
        result: dict[str, Any] = json.loads(output)
        return result

    def acknowledged(self) -> int:
        """The sum of the watermarks acknowledged to all its streams, ever."""
        return int(self.journal()[:, 1].sum()) if self._journal.exists() else 0

    def journal(self) -> "np.ndarray[Any, np.dtype[np.uint64]]":
        pairs = np.zeros((self.traffic.streams, 2), dtype=np.uint64)
        read = np.fromfile(self._journal, "<u8")
        pairs.reshape(-1)[: len(read)] = read
        return pairs


class Trainer:
    """A training process of the real client. Each start is a run and a spool of its own."""

    def __init__(self, address: str, directory: Path, number: int) -> None:
        self._address = address
        self._directory = directory
        self._number = number
        self._process: subprocess.Popen[bytes] | None = None
        self.runs: list[tuple[str, Path]] = []  # (run id, journal) of every start

    @property
    def spools(self) -> Path:
        return self._directory / f"spools-{self._number}"

    def start(self) -> None:
        run_id = uuid.uuid4().hex
        journal = self._directory / f"trainer-{run_id}.journal"
        self.runs.append((run_id, journal))
        log = (self._directory / f"trainer-{self._number}.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.trainer", run_id, str(journal)],
                stdout=log,
                stderr=log,
                cwd=_REPOSITORY,
                env=self.environment(),
            )

    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        return {
            **inherited,
            "HEADRACE_ADDRESS": self._address,
            "HEADRACE_SPOOL_DIR": str(self.spools),
            "HEADRACE_SYSTEM_METRICS": "0",  # what is stored is compared with what was logged
        }

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def senders(self) -> list[psutil.Process]:
        """The living sender processes of its spools."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "headrace.sender" in command and str(self.spools) in command[-1]:
                found.append(process)
        return found

    def kill_sender(self) -> bool:
        """SIGKILL one of its senders; False when none is alive."""
        for sender in self.senders():
            with contextlib.suppress(psutil.NoSuchProcess):
                sender.kill()
                return True
        return False

    def finish(self) -> None:
        """SIGTERM the trainer and wait until every one of its spools is delivered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(_END_DEADLINE_S + 30) == 0
        deadline = time.monotonic() + _END_DEADLINE_S
        # A sender killed after its trainer leaves its spool to whoever comes next.
        while left := list(self.spools.glob("*/writer.json")):
            assert time.monotonic() < deadline, f"not delivered: {left}"
            if not self.senders():
                self._deliver(left[0].parent, deadline)
            time.sleep(0.05)

    def _deliver(self, spool: Path, deadline: float) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subprocess.run(
                [sys.executable, "-m", "headrace.sender", str(spool)],
                stdin=theirs.fileno(),
                env=self.environment(),
                check=True,
                timeout=max(1.0, deadline - time.monotonic()),
            )

    def end(self) -> None:
        """Leave no process behind."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        for sender in self.senders():
            with contextlib.suppress(psutil.NoSuchProcess):
                sender.kill()


class Scene:
    """See the module; make it with `scene`.

    Attributes:
        postgres, gateway: the servers.
        wire, database_wire: the proxies before them.
        watch: counts the gateway's connections.
    """

    def __init__(self, directory: Path, postgres: EmbeddedPostgres, *, seed: int) -> None:
        self.directory = directory
        self.postgres = postgres
        self.random = random.Random(seed)
        self.seed = seed
        self.database_wire = Proxy("127.0.0.1", postgres.port, postgres=True)
        self.gateway: GatewayProcess
        self.wire: Proxy
        self.watch = ConnectionWatch(postgres.dsn)
        self.raw_senders: list[RawSender] = []
        self.trainers: list[Trainer] = []

    async def open(self) -> None:
        await self.database_wire.start()
        dsn = self.postgres.dsn.replace(f":{self.postgres.port}/", f":{self.database_wire.port}/")
        self.gateway = GatewayProcess(dsn, self.directory)
        await asyncio.to_thread(self.gateway.start)
        host, port = self.gateway.address.rsplit(":", 1)
        self.wire = Proxy(host, int(port))
        await self.wire.start()

    async def close(self) -> None:
        for sender in self.raw_senders:
            with contextlib.suppress(AssertionError):
                sender.kill()
        for one in self.trainers:
            one.end()
        with contextlib.suppress(AttributeError, RuntimeError):
            await asyncio.to_thread(self.gateway.kill)
        with contextlib.suppress(AttributeError):
            await self.wire.close()
        await self.database_wire.close()

    def add_raw_sender(self, *, points_per_s: int) -> None:
        sender = RawSender(
            self.wire.address,
            self.directory,
            seed=self.seed * 100 + len(self.raw_senders),
            points_per_s=points_per_s,
        )
        sender.start()
        self.raw_senders.append(sender)

    def add_trainer(self) -> None:
        one = Trainer(self.wire.address, self.directory, len(self.trainers))
        one.start()
        self.trainers.append(one)

    async def progress(self, deadline_s: float) -> float:
        """Wait until every raw sender has got new acknowledgements; return the seconds."""
        started = time.monotonic()
        before = [sender.acknowledged() for sender in self.raw_senders]
        waiting = set(range(len(self.raw_senders)))
        while True:
            waiting = {n for n in waiting if self.raw_senders[n].acknowledged() <= before[n]}
            elapsed = time.monotonic() - started
            if not waiting:
                return elapsed
            if elapsed > deadline_s:
                log = self.gateway.log_path.read_text(encoding="utf-8")[-6_000:]
                raise AssertionError(f"no progress of senders {waiting}; the gateway says:\n{log}")
            await asyncio.sleep(0.05)

    def settled_commits(self) -> Counter[bool]:
        """How often the gateway found an ambiguous COMMIT committed, and how often not."""
        log = self.gateway.log_path.read_text(encoding="utf-8")
        lines = [line for line in log.splitlines() if "ambiguous commit settled" in line]
        return Counter('"committed": true' in line for line in lines)

    async def backends(self) -> list[int]:
        """The process ids of the gateway's backends."""
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            rows = await connection.fetch(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'headrace%'"
            )
            return [row["pid"] for row in rows]
        finally:
            await connection.close()

    async def finish(self) -> None:
        """Let every writer deliver what it has, in peace."""
        for sender in self.raw_senders:
            result = await asyncio.to_thread(sender.finish)
            assert not result["errors"], result["errors"]
        for one in self.trainers:
            await asyncio.to_thread(one.finish)

    async def check(self) -> int:
        """Assert that all is stored, once, and nothing else; return the number of points."""
        total = 0
        async with Oracle(self.postgres.dsn) as oracle:
            for sender in self.raw_senders:
                for stream, (sent, acknowledged) in enumerate(sender.journal().tolist()):
                    total += await oracle.check_writer(
                        sender.traffic.plan(stream),
                        run_id=sender.traffic.run_id(stream),
                        writer_id=sender.traffic.writer_id(stream),
                        sent=sent,
                        acknowledged=acknowledged,
                    )
            for one in self.trainers:
                for run_id, journal in one.runs:
                    total += await _check_trainer(oracle, run_id, journal)
            (row,) = await oracle.fetch(
                "SELECT sum(length(point_values) / 8) AS n FROM metric_chunks"
            )
            assert row["n"] == total, f"{row['n']} points stored, {total} accounted for"
        return total


async def _check_trainer(oracle: Oracle, run_id: str, journal: Path) -> int:
    logged = trainer.logged_steps(journal)
    points = await oracle.points(run_id)
    keys = {
        row["series_id"]: row["key"]
        for row in await oracle.fetch(
            "SELECT series_id, key FROM series WHERE run_id = $1", uuid.UUID(run_id)
        )
    }
    # A log call that was killed after its write and before its return may be stored too.
    counts = {len(points[points["series_id"] == series_id]) for series_id in keys}
    assert counts <= {logged, logged + 1}, f"run {run_id}: {logged} logged, {counts} stored"
    assert len(counts) <= 1, f"run {run_id}: a record is stored in part: {counts}"
    assert bool(keys) or not logged
    for series_id, key in keys.items():
        own = np.sort(points[points["series_id"] == series_id], order="step")
        steps = np.arange(len(own))
        index = trainer.KEYS.index(key)
        assert np.array_equal(own["step"], steps), f"run {run_id}, {key}: steps are missing"
        assert np.array_equal(own["value"], steps / 1024 + index)
    return len(points)


@contextlib.asynccontextmanager
async def scene(*, seed: int) -> AsyncIterator[Scene]:
    """Yield a running scene on a PostgreSQL of its own, with fsync as in production."""
    # Not pytest's directory: its long paths do not fit a Unix socket's address.
    with tempfile.TemporaryDirectory(prefix="headrace-scene-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # noqa: ASYNC240 - PostgreSQL may run under another account
        with EmbeddedPostgres(directory / "pg", settings={"shared_buffers": "128MB"}) as postgres:
            one = Scene(directory, postgres, seed=seed)
            try:
                await one.open()
                async with one.watch:
                    yield one
            finally:
                await one.close()
