"""The supervisor: several gateway processes on one port, and the embedded stores.

Each worker is a new interpreter (never a fork: gRPC does not survive one) that
gets its share of every budget, listens on the same port with SO_REUSEPORT and
says when it is ready. A worker that dies is started again, later each time it
dies young; an embedded store likewise. Signals are passed on; when the
supervisor is killed, its workers notice the closed pipe and end at once.
"""

import asyncio
import contextlib
import errno
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog
import uvloop

from gateway.config import Settings, split_address
from gateway.domain.errors import HeadraceError
from gateway.embedded import Embedded, EmbeddedError
from gateway.server import StartError, serve
from gateway.telemetry import configure_logs, forget_worker, serve_metrics

_LOG = structlog.get_logger(__name__)

_BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
_YOUNG_S: Final = 30.0
_STORE_PERIOD_S: Final = 0.5
_KILL_MARGIN_S: Final = 10.0
_PORT_PATIENCE_S: Final = 1.0  # for the workers of a supervisor that was killed
_PORT_POLL_S: Final = 0.05
_READY: Final = b"ready\n"


class Supervisor:
    """Runs the workers of one gateway until a signal."""

    def __init__(self, settings: Settings, *, embedded: Embedded | None) -> None:
        """Prepare; `settings` are the whole gateway's."""
        self._settings = settings
        self._embedded = embedded
        self._stopping = asyncio.Event()
        self._processes: dict[int, asyncio.subprocess.Process] = {}

    async def run(self, on_ready: Callable[[str, str], None]) -> bool:
        """Serve until SIGTERM or SIGINT; return whether every worker drained.

        Args:
            on_ready: is called with the gRPC address and the metrics URL
                (empty when off) when all workers answer.

        Raises:
            StartError: an address is taken, or a worker ended before it was ready.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal, number)
        with tempfile.TemporaryDirectory(prefix="headrace-metrics-") as name:
            metrics = Path(name)
            await _wait_until_free(self._settings.listen)
            with _reserve(self._settings.listen) as address:
                url = start_metrics(self._settings, directory=metrics)
                settings = self._settings.model_copy(update={"listen": address})
                ready = [asyncio.Event() for _ in range(settings.workers)]
                workers = [
                    asyncio.create_task(self._keep(settings, index, metrics, ready[index]))
                    for index in range(settings.workers)
                ]
                stores = asyncio.create_task(self._keep_stores())
                try:
                    all_ready = asyncio.create_task(_all(ready))
                    await asyncio.wait({all_ready, *workers}, return_when="FIRST_COMPLETED")
                    if all_ready.done():
                        on_ready(address, url)
                    else:
                        all_ready.cancel()
                        self._stopping.set()
                        self._forward(signal.SIGTERM)
                    # All of them end before the first failure is told.
                    drained = await asyncio.gather(*workers, return_exceptions=True)
                    for outcome in drained:
                        if isinstance(outcome, BaseException):
                            raise outcome
                    return all(drained)
                finally:
                    stores.cancel()
                    for process in self._processes.values():
                        with contextlib.suppress(ProcessLookupError):
                            process.kill()

    def _signal(self, number: signal.Signals) -> None:
        self._stopping.set()
        self._forward(number)

    def _forward(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(
        self, settings: Settings, index: int, metrics: Path, ready: asyncio.Event
    ) -> bool:
        """Keep one worker alive; return whether the last one drained."""
        deaths = 0
        while True:
            started = time.monotonic()
            code = await self._live(settings, index, metrics, ready)
            if self._stopping.is_set():
                return code == 0
            if not ready.is_set():
                raise StartError(f"worker {index} ended before it was ready; see the log")
            deaths = deaths + 1 if time.monotonic() - started < _YOUNG_S else 0
            delay_s = _BACKOFF_S[min(deaths, len(_BACKOFF_S) - 1)] * random.uniform(0.5, 1)
            _LOG.error("worker died", worker=index, code=code, again_in_s=round(delay_s, 2))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
                return False

    async def _live(
        self, settings: Settings, index: int, metrics: Path, ready: asyncio.Event
    ) -> int | None:
        """Run one worker to its end; return its exit code, None when it was never born."""
        try:
            process = await self._start(settings, index, metrics)
        except OSError as error:  # no process, memory or descriptor is left for it
            _LOG.error("worker cannot be started", worker=index, error=str(error))
            return None
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        if await process.stdout.readline() == _READY:
            ready.set()
        code = await self._ended(process)
        del self._processes[index]
        forget_worker(process.pid, metrics)
        return code

    async def _start(
        self, settings: Settings, index: int, metrics: Path
    ) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway.workers",
            str(index),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # A terminal's Ctrl-C is for the supervisor, which passes it on.
            start_new_session=True,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
        )
        self._processes[index] = process
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        # Through the pipe: arguments and variables are visible to others, the DSN is a secret.
        process.stdin.write(settings.share(index).model_dump_json().encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        if self._stopping.is_set():
            process.send_signal(signal.SIGTERM)
        return process

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        try:
            patience_s = self._settings.drain_deadline_s + _KILL_MARGIN_S
            return await asyncio.wait_for(asyncio.shield(ended), patience_s)
        except TimeoutError:
            _LOG.error("worker ignored its drain deadline", pid=process.pid)
            process.kill()
            return await ended

    async def _keep_stores(self) -> None:
        # On the main thread although it blocks for a moment: the kernel ends
        # the stores when the thread that started them ends.
        while self._embedded is not None:
            await asyncio.sleep(_STORE_PERIOD_S)
            if not (self._embedded.postgres.running and self._embedded.s3.running):
                _LOG.error("an embedded store died; starting it again")
                try:
                    self._embedded.start()
                except EmbeddedError as error:
                    _LOG.error("the embedded store does not start", error=str(error))


def start_metrics(settings: Settings, *, directory: Path | None) -> str:
    """Serve metrics as configured; return their URL, or "" when off.

    Raises:
        StartError: the address cannot be listened on.
    """
    if settings.metrics_listen == "off":
        return ""
    host, port = split_address(settings.metrics_listen)
    try:
        _, port = serve_metrics(host, port, directory=directory)
    except OSError as error:
        raise StartError(
            f"metrics cannot listen on {settings.metrics_listen}: {error.strerror}"
        ) from error
    return f"http://{_bracketed(host)}:{port}/metrics"


async def _wait_until_free(address: str) -> None:
    """Return when nobody has the port.

    The workers share theirs by SO_REUSEPORT, which would as silently let another
    gateway's workers in. Connections of before do not count (SO_REUSEADDR).

    Raises:
        StartError: somebody has it, or it is no address of this machine.
    """
    deadline = time.monotonic() + _PORT_PATIENCE_S
    while True:
        try:
            _bound(address, socket.SO_REUSEADDR).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise _cannot_listen(address, error) from error
        else:
            return
        await asyncio.sleep(_PORT_POLL_S)


@contextlib.contextmanager
def _reserve(address: str) -> Iterator[str]:
    """Hold a port for the workers, so that it stays ours while none of them listens.

    Yields:
        The address with the port that port 0 became.
    """
    try:
        holder = _bound(address, socket.SO_REUSEPORT)
    except OSError as error:
        raise _cannot_listen(address, error) from error
    with holder:
        # Bound and never listening: the kernel gives it no connections.
        host, _ = split_address(address)
        yield f"{_bracketed(host)}:{holder.getsockname()[1]}"


def _bound(address: str, option: int) -> socket.socket:
    """Return a socket bound to the address with an option of SOL_SOCKET; raise OSError."""
    host, port = split_address(address)
    family, kind, protocol, _, target = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(target)
    except OSError:
        bound.close()
        raise
    return bound


def _cannot_listen(address: str, error: OSError) -> StartError:
    return StartError(f"cannot listen on {address}: {error.strerror}")


async def _all(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _work(settings: Settings, index: int) -> bool:
    def supervisor_ended() -> None:
        if not os.read(0, 1):
            os._exit(1)

    def ready(_: int) -> None:
        os.write(1, _READY)

    asyncio.get_running_loop().add_reader(0, supervisor_ended)
    return await serve(settings, share_port=True, on_ready=ready, worker=index)


def main() -> None:
    """Be worker number argv[1]; its settings come as one line of JSON on standard input."""
    line = b""
    while not line.endswith(b"\n"):  # unbuffered: the loop watches the descriptor later
        if not (piece := os.read(0, 65_536)):
            sys.exit(1)
        line += piece
    settings = Settings.model_validate_json(line)
    index = int(sys.argv[1])
    configure_logs(format_=settings.log_format, level=settings.log_level)
    structlog.contextvars.bind_contextvars(worker=index)
    try:
        sys.exit(0 if uvloop.run(_work(settings, index)) else 1)
    except (StartError, HeadraceError) as error:
        _LOG.error("worker cannot start", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
