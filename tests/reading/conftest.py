"""A database with its connections, and readings of it, without a gateway process."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.domain.identity import ANONYMOUS, set_identity
from gateway.store.connections import Database
from gateway.store.reading import MetricReading


@pytest.fixture
async def connection(database_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own, to write with and to ask the views."""
    connection = await asyncpg.connect(database_dsn, server_settings={"TimeZone": "UTC"})
    yield connection
    await connection.close()


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    database = await Database.connect(database_dsn, ingest_connections=0, query_connections=3)
    yield database
    await database.close()


@pytest.fixture
def reading(database: Database) -> MetricReading:
    return MetricReading(database, poll_min_ms=5, poll_max_ms=20)


@pytest.fixture(autouse=True)
def _anonymous() -> None:
    set_identity(ANONYMOUS)
