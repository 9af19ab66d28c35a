"""The command: `python -m examples.demo`."""

import argparse
import asyncio
import shutil
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.live import Live

from examples.demo.audit import audit
from examples.demo.jobs import Job, Trainer, Trainers, plan
from examples.demo.report import Progress, print_audit, print_best_runs, save_chart
from examples.demo.servers import Gateway, Observer
from examples.demo.wire import Wire

START_INTERVAL_S: Final = 0.05
LOOK_INTERVAL_S: Final = 0.2
POLL_S: Final = 0.02
CUT_S: Final = 2.0
DOWN_S: Final = 1.0
DEADLINE_S: Final = 300.0
"""Far more than it takes; a demo that hangs must say so."""

CUT_AT: Final = 0.15
GATEWAY_KILL_AT: Final = 0.50
TRAINER_KILL_AT: Final = 0.4125
"""Parts of the points: of all jobs for the first two, of the victim for the last, which
falls into the middle of an epoch: the restart computes some steps anew."""


class Demo:
    """The story: start, cut the network, kill a trainer, kill the gateway, drain, audit."""

    def __init__(self, directory: Path, epochs: int, console: Console) -> None:
        self._console = console
        self._directory = directory
        self._jobs = plan(epochs)
        self._expected_points = sum(job.expected_points for job in self._jobs)
        self._gateway = Gateway(directory)
        self._observer = Observer(directory)
        self._wire = Wire(self._gateway.address)
        self._progress = Progress(
            console=console, jobs=self._jobs, expected_points=self._expected_points
        )

    async def run(self) -> bool:
        """Run it; return whether the audit found nothing wrong."""
        started = time.monotonic()
        self._prepare()
        await self._gateway.start()
        await self._wire.open()
        self._progress.tell("gateway and PostgreSQL started")
        self._trainers = Trainers(directory=self._directory, address=self._wire.address)
        try:
            with Live(self._progress, console=self._console, refresh_per_second=4):
                async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
                    watching = group.create_task(self._watch())
                    await self._play()
                    await self._drained()
                    watching.cancel()
            findings = await audit(self._trainers.all, self._observer)
            chart = self._directory / "learning_curves.png"
            await asyncio.to_thread(
                print_best_runs, self._console, self._gateway.address, self._jobs
            )
            await asyncio.to_thread(save_chart, chart, self._gateway.address, self._jobs)
        finally:
            await self._trainers.stop()
            await self._observer.close()
            await self._wire.close()
            await self._gateway.stop()
        self._console.print(f"learning curves: {chart}")
        print_audit(self._console, findings)
        self._console.print(f"took {time.monotonic() - started:.0f} s")
        return all(finding.holds for finding in findings)

    def _prepare(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        for name in ("ledgers", "logs", "checkpoints", "spools"):
            (self._directory / name).mkdir(parents=True)
        from sklearn.datasets import load_digits  # noqa: PLC0415 - slow; once, not once a job

        images, labels = load_digits(return_X_y=True)
        np.savez(self._directory / "digits.npz", images=images, labels=labels)

    async def _play(self) -> None:
        """Start the jobs and make things go wrong meanwhile; return when all have ended."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._start_jobs())
            group.create_task(self._cut_network())
            group.create_task(self._kill_trainer(self._jobs[len(self._jobs) // 3]))
            group.create_task(self._kill_gateway())
        for trainer in self._trainers.all:
            await trainer.process.wait()
        self._progress.tell("all trainers have ended; the senders deliver the rest")

    async def _start_jobs(self) -> None:
        # The victims of the story first, so that they are well under way.
        for job in sorted(self._jobs, key=lambda job: -job.ranks):
            await self._trainers.start(job)
            await asyncio.sleep(START_INTERVAL_S)
        self._progress.tell(
            f"{len(self._trainers.all)} processes of {len(self._jobs)} jobs started"
        )

    async def _cut_network(self) -> None:
        await self._reached(CUT_AT)
        broken = self._wire.cut()
        self._progress.tell(f"network cut: {broken} connections broken, for {CUT_S:.0f} s")
        await asyncio.sleep(CUT_S)
        self._wire.mend()
        self._progress.tell("network back")

    async def _kill_trainer(self, job: Job) -> None:
        enough = TRAINER_KILL_AT * job.expected_points
        while not (victim := self._find(job)) or victim.logged_points()[1] < enough:
            await asyncio.sleep(POLL_S)
        victim.kill()
        await victim.process.wait()
        self._progress.tell(f"trainer {job.name} killed at {victim.logged_points()[1]:,} points")
        await self._trainers.start(job, attempt=2)
        self._progress.tell(f"trainer {job.name} restarted from its checkpoint as attempt 2")

    async def _kill_gateway(self) -> None:
        await self._reached(GATEWAY_KILL_AT)
        await self._gateway.kill()
        self._progress.tell("gateway killed (SIGKILL), PostgreSQL with it")
        await asyncio.sleep(DOWN_S)
        await self._gateway.start()
        self._progress.tell("gateway back")

    def _find(self, job: Job) -> Trainer | None:
        return next((trainer for trainer in self._trainers.all if trainer.job is job), None)

    async def _reached(self, part: float) -> None:
        """Return when the jobs have logged this part of all points."""
        while self._trainers.logged_points() < part * self._expected_points:
            await asyncio.sleep(POLL_S)

    async def _drained(self) -> None:
        """Return when the senders have delivered what the trainers left in their spools."""
        logged_points = self._trainers.logged_points()
        await self._observer.look()
        while self._observer.stored_points < logged_points or self._observer.runs_open:
            await asyncio.sleep(LOOK_INTERVAL_S)
            await self._observer.look()

    async def _watch(self) -> None:
        while True:
            await self._observer.look()
            self._progress.update(
                now=time.monotonic(),
                processes=self._trainers.running(),
                started=len(self._trainers.all),
                logged_points=self._trainers.logged_points(),
                stored_points=self._observer.stored_points,
                connections=self._observer.connections,
            )
            await asyncio.sleep(LOOK_INTERVAL_S)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--epochs", type=int, default=40, help="epochs of each job")
    parser.add_argument(
        "--directory", type=Path, default=Path(".demo"), help="where everything goes; replaced"
    )
    options = parser.parse_args()
    demo = Demo(options.directory.resolve(), options.epochs, Console())
    sys.exit(0 if asyncio.run(demo.run()) else 1)


if __name__ == "__main__":
    main()
