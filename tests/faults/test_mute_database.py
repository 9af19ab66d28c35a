"""A database that stops answering without a word: the gateway gives it up and loses nothing.

A black hole in place of the wire: packets vanish both ways and no connection
closes, so PostgreSQL keeps the transaction and its row locks, and only the
gateway's own patience ends it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from benchmarks.raw_streams import Result, Traffic, run
from gateway.domain.errors import StoreUnavailableError
from gateway.store import connections
from gateway.store.connections import Database
from tests.support.gateway_process import GatewayProcess
from tests.support.oracle import ConnectionWatch, Oracle
from tests.support.proxy import Fault, MessageTrap, Moment, Proxy

_BUDGET: Final = 5
_ARGUMENTS: Final = (
    *("--ingest-connections", "2", "--query-connections", "3"),
    *("--set", "ingest_timeout_s=1"),
)
_SPRUNG_DEADLINE_S: Final = 60.0
_TRAFFIC: Final = Traffic(
    streams=8, series=10, batch_points=200, points_per_s=20_000, stream_points=8_000, seed=5
)


@contextlib.asynccontextmanager
async def _gateway_behind_a_proxy(
    dsn: str, directory: Path
) -> AsyncIterator[tuple[GatewayProcess, Proxy, ConnectionWatch]]:
    parts = urlsplit(dsn)
    assert parts.hostname is not None
    assert parts.port is not None
    async with Proxy(parts.hostname, parts.port, postgres=True) as proxy:
        through = dsn.replace(f":{parts.port}/", f":{proxy.port}/")
        gateway = GatewayProcess(through, directory, arguments=_ARGUMENTS)
        await asyncio.to_thread(gateway.start)
        try:
            async with ConnectionWatch(dsn, interval_s=0.002) as watch:
                yield gateway, proxy, watch
        finally:
            await asyncio.to_thread(gateway.kill)


async def _assert_all_stored_once(dsn: str, result: Result) -> None:
    assert not result.errors, result.errors
    assert result.reconnects == 0  # the streams stalled and noticed nothing else
    async with Oracle(dsn) as oracle:
        for stream in range(_TRAFFIC.streams):
            stored = await oracle.check_writer(
                _TRAFFIC.plan(stream),
                run_id=_TRAFFIC.run_id(stream),
                writer_id=_TRAFFIC.writer_id(stream),
                sent=result.committed_sequences[stream],
                acknowledged=result.committed_sequences[stream],
            )
            assert stored == _TRAFFIC.stream_points


def _trap(proxy: Proxy, place: str) -> MessageTrap:
    match place:
        case "watermark update":
            pattern = "committed_sequence = u.last_sequence"
            return proxy.trap("E", pattern, moment=Moment.BEFORE, fault=Fault.HOLE)
        case "COPY data":
            return proxy.trap("d", moment=Moment.BEFORE, fault=Fault.HOLE)
        case "COMMIT that never arrives":
            return proxy.trap_commit(Moment.BEFORE, Fault.HOLE, after_copy=True)
        case _:
            return proxy.trap_commit(Moment.REPLY, Fault.HOLE, after_copy=True)


@pytest.mark.parametrize(
    "place",
    ["watermark update", "COPY data", "COMMIT that never arrives", "COMMIT that is not answered"],
)
async def test_flush_over_a_connection_that_falls_mute_is_tried_again(
    place: str, database_dsn: str, tmp_path: Path
) -> None:
    async with _gateway_behind_a_proxy(database_dsn, tmp_path) as (gateway, proxy, watch):
        trap = _trap(proxy, place)
        result = await run(gateway.address, _TRAFFIC)
        assert await trap.wait(_SPRUNG_DEADLINE_S)
        if place == "COMMIT that is not answered":
            assert trap.outcome == "COMMIT"
        settled = "ambiguous" if "COMMIT" in place else "unavailable"
        retries = gateway.metrics()[f'headrace_flush_retries_total{{cause="{settled}"}}']
        assert retries >= 1
    await _assert_all_stored_once(database_dsn, result)
    # The mute backend was ended before its place was taken again.
    assert watch.connections_max == _BUDGET, watch.backends_at_max


async def test_network_that_swallows_every_connection_is_survived(
    database_dsn: str, tmp_path: Path
) -> None:
    async with _gateway_behind_a_proxy(database_dsn, tmp_path) as (gateway, proxy, watch):
        running = asyncio.create_task(run(gateway.address, _TRAFFIC))
        trap = proxy.trap_commit(Moment.FORWARDED, Fault.HOLE, after_copy=True)
        assert await trap.wait(_SPRUNG_DEADLINE_S)
        assert proxy.swallow() == _BUDGET
        result = await running
    await _assert_all_stored_once(database_dsn, result)
    # Nobody could end the first of the old backends but its own successor.
    assert watch.connections_max <= _BUDGET + 1, watch.backends_at_max


async def test_transaction_of_a_query_that_falls_mute_gives_its_connection_back(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose statement was received: no bytes wait for the kernel to give them up."""
    monkeypatch.setattr(connections, "_ROLLBACK_TIMEOUT_S", 0.2)
    parts = urlsplit(database_dsn)
    assert parts.hostname is not None
    assert parts.port is not None
    async with Proxy(parts.hostname, parts.port, postgres=True) as proxy:
        database = await Database.connect(
            database_dsn.replace(f":{parts.port}/", f":{proxy.port}/"),
            ingest_connections=0,
            query_connections=1,
        )

        async def fall_mute_in_a_transaction() -> None:
            async with (
                asyncio.timeout(_SPRUNG_DEADLINE_S),
                database.query(timeout_s=0.5) as connection,
                connection.transaction(),
            ):
                proxy.swallow()
                await connection.fetchval("SELECT 1")

        with pytest.raises(StoreUnavailableError):
            await fall_mute_in_a_transaction()
        async with database.query() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        await database.close()
