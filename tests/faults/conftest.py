"""Fixtures of the fault tests."""

from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.embedded import EmbeddedPostgres
from tests.conftest import run_apart
from tests.support.gateway_process import GatewayProcess


@pytest.fixture(scope="module")
def shared_gateway(
    postgres: EmbeddedPostgres,
    _template: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[GatewayProcess]:
    """One gateway for all tests of a module: those that must not be able to disturb it."""
    name = "shared_" + request.module.__name__.rpartition(".")[2]

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute(statement)
        await connection.close()

    run_apart(execute(f"CREATE DATABASE {name} TEMPLATE {_template}"))
    dsn = postgres.dsn.rpartition("/")[0] + f"/{name}"
    directory: Path = tmp_path_factory.mktemp(name)
    with GatewayProcess(dsn, directory) as process:
        yield process
    run_apart(execute(f"DROP DATABASE {name} WITH (FORCE)"))
