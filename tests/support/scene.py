"""A whole deployment to be mistreated: PostgreSQL, a gateway, writers, and proxies on the wires.

    writers ── wire ──> gateway ── database wire ──> PostgreSQL

`RawSender` and `Trainer` are processes that can be killed and started again and
that journal what they sent; `Scene.check` asks the oracle about all of them. The
gateway has two workers, each with two connections to ingest: what can go wrong
between processes can, and what can inside the one of a gateway without workers.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg
import numpy as np
import psutil

from benchmarks.plan import Columns, Mix
from benchmarks.raw_streams import Traffic
from gateway.embedded import EmbeddedPostgres
from tests.faults import trainer
from tests.support.gateway_process import GatewayProcess
from tests.support.memory import Memory
from tests.support.oracle import DYING, Audit, ConnectionWatch, Oracle, gateway_backends
from tests.support.proxy import Proxy

_REPOSITORY: Final = Path(__file__).parents[2]
_END_DEADLINE_S: Final = 60.0
_POLL_S: Final = 0.05
_MEMORY_POLL_S: Final = 0.2

_WORKERS: Final = 2
_WORKER_CONNECTIONS: Final = 4  # two that ingest, two for the rest
_WORKER_PENDING_MIB: Final = 4
_GATEWAY: Final = (
    *("--workers", str(_WORKERS)),
    *("--ingest-connections", str(_WORKERS * 2), "--query-connections", str(_WORKERS * 2)),
    *("--set", f"pending_bytes_max={_WORKERS * _WORKER_PENDING_MIB}MiB"),
    *("--set", "stream_pending_bytes_max=1MiB"),
)
# The formula of test_memory.py: a worker at rest, 32 streams at 0.5 MiB (all that there
# are, and as many that were just cut), k = 5 times what is pending.
_WORKER_MEMORY_MIB_MAX: Final = 100 + 32 // 2 + 5 * _WORKER_PENDING_MIB


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
        self._log = directory / f"raw-{seed}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._process is None or self._process.poll() is not None, "it is alive"
        mix = self.traffic.mix
        command = [
            *(sys.executable, "-m", "benchmarks.raw_streams", self._address),
            *("--streams", str(self.traffic.streams), "--series", str(self.traffic.series)),
            *("--batch-points", str(self.traffic.batch_points), "--resume", "--recut"),
            *("--window-batches", str(self.traffic.window_batches), "--special-values"),
            *("--points-per-s", str(self.traffic.points_per_s)),
            *("--swapped", str(mix.swapped), "--repeated", str(mix.repeated)),
            *("--late", str(mix.late), "--seed", str(self.traffic.seed)),
            *("--journal", str(self._journal)),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, cwd=_REPOSITORY
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

    def journal(self) -> "np.ndarray[Any, np.dtype[np.uint64]]":
        """Per stream the greatest sequence ever sent and ever acknowledged."""
        pairs = np.zeros((self.traffic.streams, 2), dtype=np.uint64)
        if self._journal.exists():
            read = np.fromfile(self._journal, "<u8")
            pairs.reshape(-1)[: len(read)] = read
        return pairs


class Trainer:
    """A training process of the real client. Each start is a run and a spool of its own.

    Attributes:
        runs: run id and journal of every start; the last one is alive.
        senders_killed: since the last start.
    """

    def __init__(self, address: str, directory: Path, number: int) -> None:
        self._address = address
        self._directory = directory
        self._number = number
        self._process: subprocess.Popen[bytes] | None = None
        self.runs: list[tuple[str, Path]] = []
        self.senders_killed = 0

    @property
    def spools(self) -> Path:
        return self._directory / f"spools-{self._number}"

    def start(self) -> None:
        assert self._process is None or self._process.poll() is not None, "it is alive"
        run_id = uuid.uuid4().hex
        journal = self._directory / f"trainer-{run_id}.journal"
        self.runs.append((run_id, journal))
        self.senders_killed = 0
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
                self.senders_killed += 1
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
        memory_max_bytes: the most that a worker ever had resident.
    """

    def __init__(self, directory: Path, postgres: EmbeddedPostgres, *, seed: int) -> None:
        self.directory = directory
        self.postgres = postgres
        self.seed = seed
        self.database_wire = Proxy("127.0.0.1", postgres.port, postgres=True)
        self.gateway: GatewayProcess
        self.wire: Proxy
        self.watch = ConnectionWatch(postgres.dsn)
        self.memory_max_bytes = 0
        self.raw_senders: list[RawSender] = []
        self.trainers: list[Trainer] = []

    async def open(self) -> None:
        await self.database_wire.start()
        dsn = self.postgres.dsn.replace(f":{self.postgres.port}/", f":{self.database_wire.port}/")
        self.gateway = GatewayProcess(dsn, self.directory, arguments=_GATEWAY)
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

    def workers(self) -> dict[int, psutil.Process]:
        """The gateway's living workers by their numbers."""
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.gateway.pid).children():
                with contextlib.suppress(psutil.Error):
                    command = child.cmdline()
                    if "gateway.workers" in command:
                        found[int(command[-1])] = child
        return dict(sorted(found.items()))

    def kill_worker(self, number: int) -> None:
        """SIGKILL a worker; its supervisor starts another one."""
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            self.workers()[number].kill()
        self.watch.replaced(f"headrace-gateway/{number}")

    async def kill_gateway(self) -> None:
        """SIGKILL the supervisor and its workers, as the end of a container does."""
        workers = self.workers()
        await asyncio.to_thread(self.gateway.kill)
        for worker in workers.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        for number in range(_WORKERS):
            self.watch.replaced(f"headrace-gateway/{number}")

    async def recovered(self, deadline_s: float) -> float:
        """Wait until every writer has been acknowledged something new; return the seconds.

        New is what is committed after now: an acknowledgement that is under way already is no
        sign of life. Of a trainer, something that it logs after now must be committed.
        """
        started = time.monotonic()
        living = dict(one.runs[-1] for one in self.trainers)
        logged = {run: trainer.logged_steps(journal) for run, journal in living.items()}
        before: dict[str, int] = {}
        behind: list[str] = []

        async def all_moved(oracle: Oracle) -> bool:
            now = self._acknowledged()
            if not before:
                before.update(await _committed(oracle, list(now)) | logged)
            now |= await _committed(oracle, list(logged))
            behind[:] = [run for run in now if now[run] <= before[run]]
            return not behind

        if await self._until(all_moved, deadline_s):
            return time.monotonic() - started
        logs = {path.name: path.read_text()[-4_000:] for path in self.directory.glob("*.log")}
        said = "\n".join(f"{name}:\n{log}" for name, log in logs.items())
        raise AssertionError(f"runs not acknowledged in {deadline_s} s: {behind}\n{said}")

    async def unheard(self, deadline_s: float) -> bool:
        """Wait until more of a raw stream is committed than was acknowledged to it."""

        async def is_ahead(oracle: Oracle) -> bool:
            heard = self._acknowledged()
            committed = await _committed(oracle, list(heard))
            return any(committed[run] > heard[run] for run in heard)

        return await self._until(is_ahead, deadline_s)

    async def _until(self, is_true: Callable[[Oracle], Awaitable[bool]], deadline_s: float) -> bool:
        """Ask until it is true, of a database that may be dying; False when it never was."""
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            with contextlib.suppress(*DYING):
                async with Oracle(self.postgres.dsn) as oracle:
                    while time.monotonic() < deadline:
                        if await is_true(oracle):
                            return True
                        await asyncio.sleep(_POLL_S)
            await asyncio.sleep(_POLL_S)
        return False

    def _acknowledged(self) -> dict[str, int]:
        """The watermark acknowledged to each raw stream, by its run."""
        return {
            sender.traffic.run_id(stream): acknowledged
            for sender in self.raw_senders
            for stream, (_, acknowledged) in enumerate(sender.journal().tolist())
        }

    def check_budgets(self) -> None:
        """Assert that no worker ever had more connections or memory than it may have."""
        watch, memory_mib = self.watch, self.memory_max_bytes / 2**20
        assert 0 < watch.connections_max <= _WORKER_CONNECTIONS, watch.backends_at_max
        assert 0 < memory_mib <= _WORKER_MEMORY_MIB_MAX, f"{memory_mib:.0f} MiB resident"

    async def watch_memory(self) -> None:
        """Note the peaks of the workers, until cancelled."""
        peaks: dict[int, Memory] = {}
        while True:
            for worker in self.workers().values():
                # It may end in between, and has no memory then.
                with contextlib.suppress(psutil.Error, OSError, IndexError):
                    if worker.pid not in peaks:
                        peaks[worker.pid] = Memory(worker.pid)
                    peak = peaks[worker.pid].peak()
                    self.memory_max_bytes = max(self.memory_max_bytes, peak)
            await asyncio.sleep(_MEMORY_POLL_S)

    def settled_commits(self) -> Counter[bool]:
        """How often the gateway found an ambiguous COMMIT committed, and how often not."""
        log = self.gateway.log_path.read_text(encoding="utf-8")
        lines = [line for line in log.splitlines() if "ambiguous commit settled" in line]
        return Counter('"committed": true' in line for line in lines)

    async def backends(self) -> list[int]:
        """The process ids of the gateway's backends."""
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            return [backend.pid for backend in await gateway_backends(connection)]
        finally:
            await connection.close()

    async def finish(self) -> None:
        """Let every writer deliver what it has, in peace."""
        for sender in self.raw_senders:
            result = await asyncio.to_thread(sender.finish)
            assert not result["errors"], result["errors"]
        for one in self.trainers:
            await asyncio.to_thread(one.finish)

    async def check(self) -> Audit:
        """Assert that all is stored, once, and nothing else; return what was counted."""
        async with Oracle(self.postgres.dsn) as oracle:
            for sender in self.raw_senders:
                for stream, (sent, acknowledged) in enumerate(sender.journal().tolist()):
                    await oracle.check_writer(
                        sender.traffic.plan(stream),
                        run_id=sender.traffic.run_id(stream),
                        writer_id=sender.traffic.writer_id(stream),
                        sent=sent,
                        acknowledged=acknowledged,
                    )
            for one in self.trainers:
                for run_id, journal in one.runs:
                    await _check_trainer(oracle, run_id, journal)
            (row,) = await oracle.fetch(
                "SELECT sum(length(point_values) / 8) AS n FROM metric_chunks"
            )
            audit = oracle.audit
            assert row["n"] == audit.points, f"{row['n']} stored, {audit.points} accounted for"
        return audit


async def _committed(oracle: Oracle, runs: Sequence[str]) -> dict[str, int]:
    """The watermark of each run, which has one writer; 0 before it is opened."""
    rows = await oracle.fetch(
        "SELECT run_id, committed_sequence FROM writers WHERE run_id = ANY($1)",
        [uuid.UUID(run_id) for run_id in runs],
    )
    found = {row["run_id"].hex: row["committed_sequence"] for row in rows}
    return {run_id: found.get(run_id, 0) for run_id in runs}


async def _check_trainer(oracle: Oracle, run_id: str, journal: Path) -> None:
    """Assert that what a trainer logged is stored.

    One record more may be: its log call was killed after its write and before its return.
    """
    name = f"trainer of run {run_id}"
    logged = trainer.logged_steps(journal)
    writers = await oracle.writers(run_id)
    if not writers:
        assert not logged, f"{name}: {logged} records logged, no writer"
        return
    (row,) = writers.values()
    steps = row.committed_sequence
    assert logged <= steps <= logged + 1, f"{name}: {logged} records logged, {steps} stored"
    assert row.finished, f"{name}: not finished"
    series = await oracle.fetch("SELECT key FROM series WHERE run_id = $1", uuid.UUID(run_id))
    keys = sorted(one["key"] for one in series)
    assert keys == (sorted(trainer.KEYS) if steps else []), f"{name}: {keys} stored"
    # Its clock is its own: the points of a record must agree on the time.
    points = await oracle.points(run_id)
    times = dict(zip(points["step"].tolist(), points["time_us"].tolist(), strict=True))
    step = np.repeat(np.arange(steps), len(trainer.KEYS))
    index = np.tile(np.arange(len(trainer.KEYS), dtype=np.uint32), steps)
    expected = Columns(
        series_index=index,
        step=step,
        time_us=np.array([times.get(number, 0) for number in step.tolist()], np.int64),
        value=step / 1024 + index,
    )
    await oracle.check_points(name, run_id, row, expected, keys=trainer.KEYS)


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
                    memory = asyncio.create_task(one.watch_memory())
                    try:
                        yield one
                        assert not memory.done(), "nobody watched the memory to the end"
                    finally:
                        memory.cancel()
            finally:
                await one.close()
