"""Migrations run once, in order, whole or not at all, however many gateways start together."""

import asyncio
import math
import random
import shutil
import struct
import uuid
from pathlib import Path

import asyncpg
import pytest

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.flush import CHUNK_COLUMNS
from gateway.embedded import EmbeddedPostgres
from gateway.store import migrate
from tests.conftest import run_apart


@pytest.fixture
def empty_dsn(postgres: EmbeddedPostgres) -> str:
    async def create() -> None:
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute("DROP DATABASE IF EXISTS unmigrated WITH (FORCE)")
        await connection.execute("CREATE DATABASE unmigrated")
        await connection.close()

    run_apart(create())
    return postgres.dsn.rpartition("/")[0] + "/unmigrated"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the migrations, to add to; returns its `sql` folder."""
    copy = tmp_path / "migrations"
    shutil.copytree(migrate._DIRECTORY, copy)
    monkeypatch.setattr(migrate, "_DIRECTORY", copy)
    return copy / "sql"


async def revision(dsn: str) -> str | None:
    connection = await asyncpg.connect(dsn)
    try:
        return await migrate.current(connection)
    finally:
        await connection.close()


async def test_gateways_that_start_together_migrate_once(empty_dsn: str) -> None:
    applied = await asyncio.gather(*(migrate.migrate(empty_dsn) for _ in range(4)))
    assert sorted(len(one) for one in applied) == [0, 0, 0, len(migrate.migrations())]
    assert await revision(empty_dsn) == migrate.migrations()[-1].revision


async def test_a_migrated_database_has_nothing_pending(database_dsn: str) -> None:
    assert await migrate.migrate(database_dsn) == []


async def test_a_failing_migration_leaves_nothing_behind(empty_dsn: str, directory: Path) -> None:
    number = len(migrate.migrations()) + 1
    broken = directory / f"{number:04d}_broken.sql"
    broken.write_text("CREATE TABLE half (); SELECT nonsense;")
    with pytest.raises(HeadraceError, match=broken.name) as failed:
        await migrate.migrate(empty_dsn)
    assert failed.value.reason is Reason.INTERNAL
    assert await revision(empty_dsn) is None
    broken.write_text("CREATE TABLE half (); SELECT 1;")
    assert [one.name for one in await migrate.migrate(empty_dsn)][-1] == broken.stem


async def test_a_database_ahead_of_the_gateway_is_left_alone(database_dsn: str) -> None:
    connection = await asyncpg.connect(database_dsn)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    assert await migrate.migrate(database_dsn) == []


def test_misnumbered_files_are_refused(directory: Path) -> None:
    (directory / "0099_gap.sql").write_text("SELECT 1;")
    with pytest.raises(ValueError, match="0099_gap"):
        migrate.migrations()


async def test_an_unreachable_database_is_said_to_be() -> None:
    with pytest.raises(HeadraceError) as failed:
        await migrate.migrate("postgresql://nobody@127.0.0.1:1/none")
    assert failed.value.reason is Reason.STORE_UNAVAILABLE


async def test_chunks_of_arrays_become_packed_ones_bit_by_bit(empty_dsn: str) -> None:
    """Migration 0008, and the functions by which plain SQL reads what it packs."""
    rng = random.Random(8)
    values = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, -5e-324, 1.7976931348623157e308]
    values += [2.2250738585072014e-308, 2.225073858507201e-308, -1.5, math.pi]
    values += [struct.unpack(">d", rng.randbytes(8))[0] for _ in range(20_000)]
    run_id = uuid.uuid4()
    after = migrate.migrations()[7]
    assert after.name == "0008_packed_chunks"
    connection = await asyncpg.connect(empty_dsn)
    try:
        await _store_arrays(connection, rng, run_id, values)
        of_arrays = await _raw_points(connection, run_id)
        options = "SELECT reloptions FROM pg_class WHERE relname = 'metric_chunks'"
        options_before = await connection.fetchval(options)
        await connection.execute(after.path.read_text())
        assert await _raw_points(connection, run_id) == of_arrays
        assert len(of_arrays) == len(values)
        assert await connection.fetchval(options) == options_before
        # A gateway of before, still running, must fail: bytea takes its arrays for bytes.
        columns = [*CHUNK_COLUMNS[:-1], "values"]
        with pytest.raises(asyncpg.UndefinedColumnError):
            await connection.copy_records_to_table("metric_chunks", records=[], columns=columns)
    finally:
        await connection.close()


async def test_merged_chunks_move_to_a_table_of_their_own(empty_dsn: str) -> None:
    rng = random.Random(1)
    values = [rng.random() for _ in range(1_000)]
    run_id = uuid.uuid4()
    before, after = migrate.migrations()[7:9]
    assert after.name == "0009_merged_chunks"
    connection = await asyncpg.connect(empty_dsn)
    try:
        await _store_arrays(connection, rng, run_id, values)
        await connection.execute(before.path.read_text())
        in_one = await _raw_points(connection, run_id)
        await connection.execute(after.path.read_text())
        assert await _raw_points(connection, run_id) == in_one
        for table, merged in (("loose_chunks", 0), ("merged_chunks", 5)):
            counts = await connection.fetchrow(
                f"SELECT count(*), count(*) FILTER (WHERE last_sequence = 0) FROM {table}"
            )
            assert tuple(counts) == (5, merged)
        # A gateway of before, still running, must fail: it would merge into the wrong table.
        with pytest.raises(asyncpg.WrongObjectTypeError):
            await connection.copy_records_to_table(
                "metric_chunks", records=[], columns=CHUNK_COLUMNS
            )
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await connection.execute("DELETE FROM metric_chunks")
    finally:
        await connection.close()


async def _store_arrays(
    connection: asyncpg.Connection, rng: random.Random, run_id: uuid.UUID, values: list[float]
) -> None:
    """Make the schema before 0008, with one series of these values in it."""
    for each in migrate.migrations()[:7]:
        await connection.execute(each.path.read_text())
    series_id = await connection.fetchval(
        "INSERT INTO series (run_id, rank, key) VALUES ($1, 0, 'loss') RETURNING series_id",
        run_id,
    )
    await connection.executemany(
        "INSERT INTO metric_chunks VALUES ($1, $2, 1, $3, $4, $5, $6, 0, 0, 1, $7, $8, $9)",
        [
            _chunk_of_arrays(rng, run_id, series_id, first, values[first : first + 100])
            for first in range(0, len(values), 100)
        ],
    )


def _chunk_of_arrays(
    rng: random.Random, run_id: uuid.UUID, series_id: int, place: int, values: list[float]
) -> tuple[object, ...]:
    """Return a row of before; every third has irregular steps, every second is merged."""
    times = [0, *(rng.randint(-(2**31), 2**31 - 1) for _ in values[1:])]
    steps = None
    last_offset = 7 * (len(values) - 1)
    if place % 300 == 0:
        steps = [0, *sorted(rng.sample(range(1, 2**31), len(values) - 1))]
        last_offset = steps[-1]
    first_step = 10_000 * place - 1_000_000
    sequence = place % 200 // 100  # 0: merged
    return (
        run_id, series_id, sequence, first_step, first_step + last_offset, 10**15, steps, times,
        values,
    )  # fmt: skip


async def _raw_points(
    connection: asyncpg.Connection, run_id: uuid.UUID
) -> list[tuple[object, ...]]:
    rows = await connection.fetch(
        "SELECT step, time, value FROM metric_points_raw WHERE run_id = $1", run_id
    )
    # A NaN is one of many: only that it is one counts.
    return sorted(
        (step, time, struct.pack(">d", math.nan if math.isnan(value) else value))
        for step, time, value in rows
    )
