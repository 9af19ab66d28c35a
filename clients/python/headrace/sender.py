"""The sender: the process between a spool and the gateway. `python -m headrace.sender SPOOL`.

Started by the trainer (see sender_process.py) and by nobody else; `headrace
sync` runs the same code in its own process. It creates the run, keeps a
WriteMetrics stream going for as long as there is something to send or the
trainer lives, resumes after every failure that can pass, finishes the writer
and, for the run's main process, the run (FAILED when the trainer died without
a word), deletes what is committed, and ends. It ends early only when the
gateway refuses for good, or another sender has the spool.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from headrace import spool_files
from headrace.artifact_queue import ArtifactQueue
from headrace.channel import call_metadata, open_channel
from headrace.console import CONSOLE_FILE
from headrace.errors import SpoolError
from headrace.failures import Failure, Remedy, failure_of
from headrace.sender_process import EXIT_STOPPED
from headrace.sender_status import SenderStatus
from headrace.settings import Settings, load_settings
from headrace.spool_files import ProcessLock, WriterIdentity
from headrace.spool_reader import KeyReader, SpoolReader
from headrace.status import FINISHED
from headrace.system_writer import SystemWriter
from headrace.trainer_watch import TrainerWatch
from headrace.uploader import deliver
from headrace.v1 import run_service_pb2, run_service_pb2_grpc
from headrace.writer_stream import WriterFinishedEarlyError, WriterStream

BACKOFF_S: Final = 0.2
BACKOFF_MAX_S: Final = 10.0
"""Waits between attempts: doubled from the first to the second, each times a random 0.5 to 1."""

CALL_TIMEOUT_S: Final = 30.0
"""A unary call that takes longer has failed."""

CONSOLE_TIMEOUT_S: Final = 20.0
"""What is not stored by then waits for `headrace sync`."""

HOUSEKEEPING_INTERVAL_S: Final = 2.0
"""Records that stay unacknowledged for longer are made to survive a power loss, together."""


class SenderStoppedError(Exception):
    """The sender gives up; its text says why and what to do."""


class Sender:
    """Delivers one spool.

    Attributes:
        identity: whose spool it is.
        status: what is known of its delivery.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        *,
        once: bool = False,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Claims the spool.

        Args:
            directory: the spool.
            settings: how to reach the gateway.
            once: send what is there and return, even if the trainer still lives.
            log: takes a line for people when something happens.

        Raises:
            SpoolError: no spool, or another sender has it.
        """
        self.identity = WriterIdentity.read(directory)
        self._directory = directory
        self._settings = settings
        self._once = once
        self._log = log
        self._lock = ProcessLock(directory / spool_files.SENDER_LOCK)
        if not self._lock.acquire():
            self._lock.close()
            raise SpoolError(f"{directory} has a sender already, which is at work")
        self.status = SenderStatus(directory)
        self._reader = SpoolReader(directory, self.identity.incarnation)
        self._keys = KeyReader(directory, self.identity.incarnation)
        self._watch = TrainerWatch(directory)
        self._woken = asyncio.Event()
        self._run_created = False
        self._stream: WriterStream | None = None
        self._damages_told = 0
        self._system: SystemWriter | None = None
        if self.identity.system_metrics_interval_s and not once:
            self._system = SystemWriter(self.identity, settings, directory)

    def wake(self) -> None:
        """The trainer says that there is something."""
        self._woken.set()

    async def run(self) -> bool:
        """Delivers everything; True when the writer is finished and the spool deleted.

        Raises:
            SenderStoppedError: see there; the status note says the same.
            OSError: the spool cannot be read.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(self._keep_house())]
                if self._system is not None:
                    background.append(tasks.create_task(self._system.run()))
                finished = await self._deliver()
                for task in background[1:]:
                    task.cancel()
                if self._system is not None:
                    await self._system.finish()
                if finished:
                    await self._finish_run()
                    await self._store_console()
                background[0].cancel()
        except ExceptionGroup as group:
            error = group.exceptions[0]
            self.status.end(done=False, stopped=str(error))
            raise error from None
        self._tell_damages()
        self.status.end(done=finished)
        if finished and self._watch.gone():
            spool_files.remove_spool(self._directory)
        return finished

    def close(self) -> None:
        """Lets go of the spool."""
        self._reader.close()
        self._keys.close()
        self._watch.close()
        self.status.close()
        self._lock.close()

    async def _deliver(self) -> bool:
        """Streams until the writer is finished, or (once) until everything there is committed."""
        wait_s = BACKOFF_S
        while True:
            before = self.status.committed_sequence
            failure: Failure | None = None
            try:
                async with open_channel(self._settings) as channel:
                    if not self._run_created:
                        await self._create_run(channel)
                    self._stream = WriterStream(
                        channel=channel,
                        metadata=call_metadata(self._settings),
                        identity=self.identity,
                        reader=self._reader,
                        keys=self._keys,
                        watch=self._watch,
                        status=self.status,
                        woken=self._woken,
                        once=self._once,
                    )
                    end = await self._stream.run()
                    if end.finished:
                        return True
                    if end.reconnect_within_s is not None:
                        self._log("the gateway asked to reconnect")
                        await asyncio.sleep(random.uniform(0, end.reconnect_within_s))
                        continue
                    if self._once and self._stream.settled:
                        return False
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
                self._judge(failure)
            except WriterFinishedEarlyError as error:
                raise SenderStoppedError(str(error)) from None
            finally:
                self._stream = None
            if self.status.committed_sequence > before:
                wait_s = BACKOFF_S
            pause_s = wait_s * random.uniform(0.5, 1.0)
            if failure is None:
                self._log(f"the stream ended early; trying again in {pause_s:.1f} s")
            else:
                self._log(f"{failure.text}; trying again in {pause_s:.1f} s")
                pause_s = max(pause_s, failure.retry_after_s * random.uniform(1.0, 1.5))
            await asyncio.sleep(pause_s)
            wait_s = min(2 * wait_s, BACKOFF_MAX_S)

    async def _create_run(self, channel: grpc.aio.Channel) -> None:
        identity = self.identity
        runs = run_service_pb2_grpc.RunServiceStub(channel)
        metadata = call_metadata(self._settings)
        origin = asdict(identity.origin)
        facts = [
            run_service_pb2.MetadataEntry(fact=run_service_pb2.Fact(name=name, value=text))
            for name, text in identity.facts.items()
        ]
        response = await runs.CreateRun(
            run_service_pb2.CreateRunRequest(
                run_id=identity.run_id,
                experiment=identity.experiment,
                name=identity.name,
                step_policy=run_service_pb2.StepPolicy.ValueType(identity.step_policy),
                late_policy=run_service_pb2.LatePolicy.ValueType(identity.late_policy),
                parent_run_id=identity.parent_run_id,
                start_time=Timestamp(
                    seconds=identity.created_us // 1_000_000,
                    nanos=identity.created_us % 1_000_000 * 1_000,
                ),
                entries=facts,
                **origin,
            ),
            timeout=CALL_TIMEOUT_S,
            metadata=metadata,
        )
        if identity.ends_run and not response.created:
            # Another rank came first, or an earlier attempt: rank 0 speaks for the run.
            await runs.UpdateRun(
                run_service_pb2.UpdateRunRequest(
                    run_id=identity.run_id,
                    run=run_service_pb2.Run(**origin),
                    update_mask=FieldMask(paths=list(origin)),
                ),
                timeout=CALL_TIMEOUT_S,
                metadata=metadata,
            )
            await runs.WriteMetadata(
                run_service_pb2.WriteMetadataRequest(run_id=identity.run_id, entries=facts),
                timeout=CALL_TIMEOUT_S,
                metadata=metadata,
            )
        if self._system is not None:
            self._system.began_us = response.run.start_time.ToMicroseconds()
        self._run_created = True

    async def _finish_run(self) -> None:
        """Ends the run, if this writer's end is the run's, or if a rank's own process failed."""
        state = self._watch.state
        if self.identity.forked or (state == FINISHED and not self.identity.ends_run):
            return
        wait_s = BACKOFF_S
        while True:
            try:
                async with open_channel(self._settings) as channel:
                    await run_service_pb2_grpc.RunServiceStub(channel).FinishRun(
                        run_service_pb2.FinishRunRequest(
                            run_id=self.identity.run_id,
                            attempt=self.identity.attempt,
                            state=run_service_pb2.RunState.ValueType(state),
                        ),
                        timeout=CALL_TIMEOUT_S,
                        metadata=call_metadata(self._settings),
                    )
                return
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
                self._judge(failure)
                self._log(f"finishing the run: {failure.text}; trying again")
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, BACKOFF_MAX_S)

    async def _store_console(self) -> None:
        """Stores what the trainer wrote to its console, if that was kept."""
        file = self._directory / CONSOLE_FILE
        if not file.exists():
            return
        identity = self.identity
        name = f"console/rank-{identity.rank}-attempt-{identity.attempt}.log"
        try:
            queue = ArtifactQueue(self._directory.parent, identity.run_id)
            queue.add_file(file, name, "text/plain")
            queue.close()
        except OSError as error:
            self._log(f"the console's copy is lost: {error}")
            return
        deadline = time.monotonic() + CONSOLE_TIMEOUT_S
        if not await asyncio.to_thread(deliver, queue.directory, self._settings, deadline=deadline):
            self._log("the console's copy is not stored yet; headrace sync tries again")

    def _judge(self, failure: Failure) -> None:
        """Raises SenderStoppedError when trying again is of no use."""
        if failure.remedy is Remedy.GIVE_UP:
            raise SenderStoppedError(
                f"{failure.text} (the records stay in {self._directory}; "
                f"headrace sync {self._directory} tries again)"
            )
        if failure.remedy is Remedy.CREATE_RUN:
            self._run_created = False

    async def _keep_house(self) -> None:
        """Now and then: looks at the trainer, writes the note, makes old records durable."""
        synced: tuple[int, int] = (0, 0)
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)
            if not self._directory.exists():
                raise SenderStoppedError(f"the spool {self._directory} was deleted")
            self._watch.look()
            self._tell_damages()
            self.status.write()
            if self._stream is not None and self._stream.settled:
                continue
            end = self._reader.end_of_spool()
            if end != synced:
                await asyncio.to_thread(self._fsync, synced[0])
                synced = end

    def _fsync(self, first_segment: int) -> None:
        self._keys.fsync()
        self._reader.fsync(first_segment)

    def _tell_damages(self) -> None:
        for damage in self._reader.damages[self._damages_told :]:
            self._log(f"damaged spool: {damage}")
        self._damages_told = len(self._reader.damages)
        self.status.damaged(self._reader.damages)


def main() -> int:
    """Delivers the spool named by the first argument, for the trainer at the other end of stdin."""
    directory = Path(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return asyncio.run(_main(directory))
    except SpoolError as error:
        _log(str(error))
        return 0
    except SenderStoppedError as error:
        _log(f"stopped: {error}")
        return EXIT_STOPPED


async def _main(directory: Path) -> int:
    sender = Sender(directory, load_settings(), log=_log)
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        stack.callback(sender.close)
        trainer = stack.enter_context(socket.socket(fileno=os.dup(0)))
        trainer.setblocking(False)

        def woken() -> None:
            with contextlib.suppress(BlockingIOError):
                if not _read_all(trainer):
                    loop.remove_reader(trainer)  # the trainer is gone; its lock will tell
            sender.wake()

        loop.add_reader(trainer, woken)
        await sender.run()
    return 0


def _read_all(trainer: socket.socket) -> bool:
    """Empties the socket; False at its end."""
    try:
        return bool(trainer.recv(4096))
    except ConnectionError:
        return False


def _log(text: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    sys.stderr.write(f"{stamp} [{os.getpid()}] {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
