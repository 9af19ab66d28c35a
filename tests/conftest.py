"""Fixtures: real servers from wheels, a fresh database for each test.

`postgres` and `s3` start once a session (under a second each); `database_dsn`
clones a migrated template (tens of milliseconds); `gateway` is a process of its
own. Tests that kill or freeze PostgreSQL start one of their own with
`EmbeddedPostgres(tmp_path)`.
"""

import asyncio
import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from gateway.embedded import EmbeddedPostgres, EmbeddedS3
from gateway.store.migrate import migrate
from tests.support.gateway_process import GatewayProcess

NewDatabase = Callable[[], contextlib.AbstractContextManager[str]]

# Busy machines are slow, which says nothing about the code.
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")

# Points are counted; who tests the sampling turns it on. No test reads a user's login.
os.environ["HEADRACE_SYSTEM_METRICS"] = "0"
os.environ["HEADRACE_LOGIN_FILE"] = os.devnull
# Hundreds of processes start: none shall compile its modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_LONGEST = (
    "tests/conformance/test_examples.py",
    "tests/client/test_commands.py",
    "tests/artifacts/test_faults.py",
    "tests/artifacts/test_logging.py",
    "tests/faults/test_database_trouble.py",
    "tests/platform/test_lifecycle.py",
    "tests/faults/test_exactly_once.py",
    "tests/client/test_delivery.py",
    "tests/faults/test_memory.py",
    "tests/client/test_fork.py",
)
"""Files of ten seconds and more, which go first: the workers end at about the same time."""

_TEMPLATE = "headrace_template"
_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="runs for minutes; use --long")
        for item in items:
            if "long" in item.keywords:
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the gateways' logs where a test failed: a refusal's cause stands there."""
    report = yield
    if report.failed:
        for process in GatewayProcess.known:
            report.sections.append((f"Log of the gateway at {process.address}", process.log_tail()))
    return report


def run_apart(coroutine: Any) -> Any:
    """Run a coroutine to its end on a loop of its own, whether or not one runs here."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _dsn_of(server: EmbeddedPostgres, database: str) -> str:
    return server.dsn.rpartition("/")[0] + f"/{database}"


@pytest.fixture(scope="session")
def _session_directory() -> Iterator[Path]:
    # Not pytest's own: its long paths do not fit a Unix socket's address.
    with tempfile.TemporaryDirectory(prefix="headrace-tests-") as name:
        Path(name).chmod(0o711)  # PostgreSQL may run under another account
        yield Path(name)


@pytest.fixture(scope="session")
def postgres(_session_directory: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server; `.dsn` (TCP), `.socket_dsn`. Its `headrace` database stays empty.

    fsync is off: these tests kill processes, and what a killed process wrote
    stays in the kernel. Only a power loss needs fsync, and no test makes one.
    """
    settings = {"fsync": "off", "max_connections": "200", "shared_buffers": "128MB"}
    with EmbeddedPostgres(_session_directory / "pg", settings=settings) as server:
        yield server


@pytest.fixture(scope="session")
def _template(postgres: EmbeddedPostgres) -> str:
    run_apart(_execute(postgres.dsn, f"CREATE DATABASE {_TEMPLATE}"))
    run_apart(migrate(_dsn_of(postgres, _TEMPLATE)))
    return _TEMPLATE


@pytest.fixture(scope="session")
def new_database(postgres: EmbeddedPostgres, _template: str) -> NewDatabase:
    """A context manager that makes a fresh, migrated database, yields its DSN and drops it."""

    @contextlib.contextmanager
    def make() -> Iterator[str]:
        name = f"test_{next(_numbers)}"
        # Without fsync a copy of the files is far cheaper than one through the WAL.
        copy = f"CREATE DATABASE {name} TEMPLATE {_template} STRATEGY FILE_COPY"
        run_apart(_execute(postgres.dsn, copy))
        yield _dsn_of(postgres, name)
        run_apart(_execute(postgres.dsn, f"DROP DATABASE {name} WITH (FORCE)"))

    return make


@pytest.fixture
def database_dsn(new_database: NewDatabase) -> Iterator[str]:
    """The DSN of a fresh, migrated database."""
    with new_database() as dsn:
        yield dsn


@pytest.fixture
def gateway(database_dsn: str, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway process on a fresh database; see GatewayProcess."""
    with GatewayProcess(database_dsn, tmp_path) as process:
        yield process


@pytest.fixture(scope="module")
def shared_gateway(
    new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """One gateway for the tests of a module, which use run ids of their own and do it no harm."""
    directory = tmp_path_factory.mktemp("gateway")
    with new_database() as dsn, GatewayProcess(dsn, directory) as process:
        yield process


@pytest.fixture
def mortal_gateway(shared_gateway: GatewayProcess) -> Iterator[GatewayProcess]:
    """The module's gateway, for a test that may kill it: the next one finds it running."""
    yield shared_gateway
    if shared_gateway.process.poll() is not None:
        shared_gateway.start()


@pytest.fixture(scope="session")
def s3(_session_directory: Path) -> Iterator[EmbeddedS3]:
    """An S3 server: `.endpoint_url`, `.access_key_id`, `.secret_access_key`, `.bucket`."""
    with EmbeddedS3(_session_directory / "s3") as server:
        yield server
