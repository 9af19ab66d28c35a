"""The training jobs: which there are, and their processes."""

import asyncio
import itertools
import os
import signal
import struct
import sys
import uuid
from asyncio.subprocess import Process
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

SINGLE_JOBS: Final = 52
RANK_JOBS: Final = 4
RANKS: Final = 2

TRAINING_SAMPLES: Final = 1_437

ROOT: Final = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training job and its hyper-parameters.

    Attributes:
        name: of the run.
        run_id: 32 hex digits, chosen before the job starts, as a scheduler would.
        ranks: processes of the job.
        epochs: how long it trains.
    """

    name: str
    run_id: str
    hidden: int
    learning_rate: float
    batch_size: int
    weight_decay: float
    epochs: int
    seed: int
    ranks: int = 1

    @property
    def run_uuid(self) -> uuid.UUID:
        """The run's id as PostgreSQL knows it."""
        return uuid.UUID(self.run_id)

    @property
    def expected_points(self) -> int:
        """What the job logs when nothing interrupts it, all ranks together."""
        samples = [len(range(rank, TRAINING_SAMPLES, self.ranks)) for rank in range(self.ranks)]
        steps = sum(-(-count // self.batch_size) for count in samples)
        return self.epochs * (5 * steps + 2 * self.ranks)

    def arguments(self) -> list[str]:
        """Return what the training script is started with."""
        values = {
            "hidden": self.hidden,
            "learning-rate": self.learning_rate,
            "batch-size": self.batch_size,
            "weight-decay": self.weight_decay,
            "epochs": self.epochs,
            "seed": self.seed,
            "name": self.name,
        }
        return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def plan(epochs: int) -> list[Job]:
    """Return the jobs of the demo: a grid of hyper-parameters, the last ones of two ranks."""
    grid = itertools.product(
        (16, 32, 64, 128), (0.003, 0.01, 0.03, 0.1, 0.2), (16, 32, 64), (0.0, 1e-3)
    )
    chosen = list(grid)[:: 120 // (SINGLE_JOBS + RANK_JOBS)]
    jobs = []
    for number, (hidden, rate, batch, decay) in enumerate(chosen[: SINGLE_JOBS + RANK_JOBS]):
        ranks = RANKS if number >= SINGLE_JOBS else 1
        jobs.append(
            Job(
                name=f"digits-{number:02d}" + (f"-x{ranks}" if ranks > 1 else ""),
                run_id=uuid.uuid4().hex,
                hidden=hidden,
                learning_rate=rate,
                batch_size=batch,
                weight_decay=decay,
                epochs=epochs,
                seed=number,
                ranks=ranks,
            )
        )
    return jobs


@dataclass(slots=True, kw_only=True)
class Trainer:
    """One process: one rank of one attempt of a job.

    Attributes:
        process: the trainer; its sender is a child that may outlive it.
        ledger: the file in which it counts what it logs.
        was_killed: it got SIGKILL from us.
    """

    job: Job
    rank: int
    attempt: int
    process: Process
    ledger: Path
    was_killed: bool = False

    def logged_points(self) -> tuple[int, int]:
        """Return the points that it began to log, and those whose log call returned."""
        try:
            began, returned = struct.unpack("<qq", self.ledger.read_bytes())
        except (FileNotFoundError, struct.error):
            return 0, 0
        return began, returned

    def kill(self) -> None:
        """Kill it as the kernel's memory killer would."""
        self.was_killed = True
        self.process.send_signal(signal.SIGKILL)


@dataclass(slots=True, kw_only=True)
class Trainers:
    """All processes of the demo.

    Attributes:
        directory: for data, checkpoints, spools, ledgers and logs.
        address: where the gateway is reached.
        all: every process ever started.
    """

    directory: Path
    address: str
    all: list[Trainer] = field(default_factory=list)

    async def start(self, job: Job, *, attempt: int = 1) -> list[Trainer]:
        """Start a job's processes; an attempt above 1 finds its checkpoint itself."""
        return [await self._start(job, rank, attempt) for rank in range(job.ranks)]

    def running(self) -> int:
        """Return how many processes are alive."""
        return sum(trainer.process.returncode is None for trainer in self.all)

    def logged_points(self) -> int:
        """Return the points logged so far by all processes."""
        return sum(trainer.logged_points()[1] for trainer in self.all)

    def failures(self) -> Sequence[Trainer]:
        """Return the processes that failed by themselves."""
        return [
            trainer
            for trainer in self.all
            if not trainer.was_killed and trainer.process.returncode not in {0, None}
        ]

    async def stop(self) -> None:
        """End what is still running, when the demo ends early.

        Senders outlive their trainers, and would wait for this gateway for ever.
        """
        for trainer in self.all:
            if trainer.process.returncode is None:
                trainer.process.kill()
                await trainer.process.wait()
        for process in psutil.process_iter(["cmdline"]):
            if any(
                str(self.directory / "spools") in part for part in process.info["cmdline"] or ()
            ):
                process.terminate()

    async def _start(self, job: Job, rank: int, attempt: int) -> Trainer:
        label = f"{job.name}-rank-{rank}-attempt-{attempt}"
        ledger = self.directory / "ledgers" / label
        environment = {
            **os.environ,
            "HEADRACE_ADDRESS": self.address,
            "HEADRACE_SPOOL_DIR": str(self.directory / "spools"),
            "HEADRACE_SYSTEM_METRICS": "0",  # the audit counts every point
            "HEADRACE_RUN_ID": job.run_id,
            "RANK": str(rank),
            "WORLD_SIZE": str(job.ranks),
            # One job, one core: sixty jobs times all cores would only fight.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with (self.directory / "logs" / f"{label}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "examples.train_digits", *job.arguments(),
                "--data", str(self.directory / "digits.npz"),
                "--directory", str(self.directory / "checkpoints" / job.name),
                "--ledger", str(ledger),
                stdout=log, stderr=log, env=environment, cwd=ROOT,
            )  # fmt: skip
        trainer = Trainer(job=job, rank=rank, attempt=attempt, process=process, ledger=ledger)
        self.all.append(trainer)
        return trainer
