"""A gateway as its own process, to be talked to, killed and restarted.

Used by the `gateway` fixture and by whoever needs more than one gateway, other
options, or a proxy between gateway and PostgreSQL (pass the proxy's DSN).
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self
from urllib.request import urlopen

_READY = re.compile(r"gRPC on (\S+), metrics on (\S+),")


class GatewayProcess:
    """One `headrace-gateway serve`. Start with `start()` or as a context manager.

    Attributes:
        dsn: the database it uses.
        address: `host:port` of gRPC; kept by `restart`.
        metrics_url: where Prometheus reads.
        log_path: the gateway's log (JSON lines), all its lives.
        known: every one that was started and is not forgotten; a failing test shows their logs.
    """

    known: ClassVar["weakref.WeakSet[GatewayProcess]"] = weakref.WeakSet()

    def __init__(
        self,
        dsn: str,
        directory: Path,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        address: str = "127.0.0.1:0",
        start_deadline_s: float = 90.0,
    ) -> None:
        """Prepare.

        Args:
            dsn: the PostgreSQL database; "" leaves it to `arguments`.
            directory: for the log.
            arguments: further flags of `serve`.
            environment: further variables; inherited HEADRACE_* ones are removed.
            address: where to listen.
            start_deadline_s: how long `start` waits.
        """
        self.dsn = dsn
        self.address = address
        self.metrics_url = ""
        self.log_path = directory / "gateway.log"
        self._arguments = list(arguments)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        self._environment = {**inherited, **(environment or {})}
        self._start_deadline_s = start_deadline_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id (of the supervisor, with several workers)."""
        return self.process.pid

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process; raises RuntimeError when it was never started."""
        if self._process is None:
            raise RuntimeError("the gateway was not started")
        return self._process

    def start(self) -> Self:
        """Start it and return when it serves.

        Raises:
            RuntimeError: it ended, or took too long; the message has its log.
        """
        self.known.add(self)
        command = [sys.executable, "-m", "gateway.cli", "serve", "--listen", self.address]
        if "--metrics-listen" not in self._arguments:
            command += ["--metrics-listen", "127.0.0.1:0"]
        if self.dsn:
            command += ["--dsn", self.dsn]
        with self.log_path.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [*command, "--log-format", "json", *self._arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        deadline = time.monotonic() + self._start_deadline_s
        output = ""
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            with contextlib.suppress(BlockingIOError):
                output += os.read(self._process.stdout.fileno(), 65_536).decode()
            if match := _READY.search(output):
                self.address, self.metrics_url = match[1], match[2]
                return self
            if ended:
                break
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"the gateway does not serve: {output}\n{self.log_tail()}")

    def log_tail(self, characters: int = 4_000) -> str:
        """The end of its log."""
        try:
            return self.log_path.read_text(encoding="utf-8")[-characters:]
        except FileNotFoundError:
            return ""

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL, 10.0)

    def terminate(self, deadline_s: float = 30.0) -> int:
        """SIGTERM (a drain); return the exit status.

        Raises:
            RuntimeError: it did not end in time; it was killed.
        """
        return self._end(signal.SIGTERM, deadline_s)

    def restart(self, *, graceful: bool = False) -> Self:
        """End it by SIGKILL, or by SIGTERM when `graceful`; start it on the same address."""
        if graceful:
            self.terminate()
        else:
            self.kill()
        return self.start()

    def metrics(self) -> dict[str, float]:
        """Scrape: sample name with labels, as exposed, to value."""
        with urlopen(self.metrics_url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")
        }

    def _end(self, number: signal.Signals, deadline_s: float) -> int:
        process = self.process
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"the gateway ignored {number.name} for {deadline_s} s") from None
        finally:
            if process.stdout is not None:
                with contextlib.suppress(OSError):
                    process.stdout.close()
        return process.returncode

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
