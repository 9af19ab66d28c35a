"""The instrument itself: the proxy does to PostgreSQL's wire what it says."""

import asyncio
import contextlib
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support.proxy import Fault, Moment, Proxy
from tests.support.waiting import eventually_async


def _proxy(dsn: str) -> Proxy:
    parts = urlsplit(dsn)
    assert parts.hostname is not None
    assert parts.port is not None
    return Proxy(parts.hostname, parts.port, postgres=True)


def through(dsn: str, proxy: Proxy) -> str:
    """The same DSN by way of the proxy."""
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@{proxy.address}").geturl()


async def _commit_one(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("INSERT INTO marks VALUES (1)")
    finally:
        connection.terminate()


@pytest.mark.parametrize(("moment", "stored"), [(Moment.BEFORE, 0), (Moment.REPLY, 1)])
async def test_both_outcomes_of_an_ambiguous_commit_can_be_forced(
    database_dsn: str, moment: Moment, stored: int
) -> None:
    direct = await asyncpg.connect(database_dsn)
    await direct.execute("CREATE TABLE marks (mark int)")
    async with _proxy(database_dsn) as proxy:
        trap = proxy.trap_commit(moment)
        with pytest.raises((ConnectionError, asyncpg.PostgresConnectionError)):
            await _commit_one(through(database_dsn, proxy))
        assert await trap.wait(5)
        assert trap.outcome == ("COMMIT" if stored else "before")
        # The backend that lost its client may still be rolling back.
        await direct.execute("BEGIN; LOCK TABLE marks; COMMIT")
        assert await direct.fetchval("SELECT count(*) FROM marks") == stored
    await direct.close()


@pytest.mark.parametrize("kinds", ["d", "c"])
async def test_a_copy_can_be_cut_in_its_data_and_at_its_end(database_dsn: str, kinds: str) -> None:
    direct = await asyncpg.connect(database_dsn)
    await direct.execute("CREATE TABLE marks (mark int)")
    async with _proxy(database_dsn) as proxy:
        trap = proxy.trap(kinds, moment=Moment.BEFORE)
        connection = await asyncpg.connect(through(database_dsn, proxy))
        with pytest.raises((ConnectionError, asyncpg.PostgresConnectionError)):
            await connection.copy_records_to_table("marks", records=[(1,), (2,)])
        assert await trap.wait(5)
        assert await direct.fetchval("SELECT count(*) FROM marks") == 0
    await direct.close()


@pytest.mark.parametrize(("kinds", "moment"), [("", Moment.BEFORE), ("p", Moment.FORWARDED)])
async def test_a_connection_can_be_cut_while_it_is_made(
    database_dsn: str, kinds: str, moment: Moment
) -> None:
    async with _proxy(database_dsn) as proxy:
        trap = proxy.trap(kinds, moment=moment)
        with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
            await asyncpg.connect(through(database_dsn, proxy))
        assert await trap.wait(5)
        assert trap.outcome == moment.value
        connection = await asyncpg.connect(through(database_dsn, proxy))
        assert await connection.fetchval("SELECT 7") == 7
        await connection.close()


async def test_a_prepared_statement_is_recognised_when_it_is_executed_again(
    database_dsn: str,
) -> None:
    async with _proxy(database_dsn) as proxy:
        connection = await asyncpg.connect(through(database_dsn, proxy))
        await connection.fetchval("SELECT 41 + $1::int", 1)
        proxy.trap("E", r"41 \+", moment=Moment.REPLY)
        with pytest.raises((ConnectionError, asyncpg.PostgresConnectionError)):
            await connection.fetchval("SELECT 41 + $1::int", 1)


async def test_a_hole_is_silent_on_both_sides(database_dsn: str) -> None:
    async with _proxy(database_dsn) as proxy:
        connection = await asyncpg.connect(through(database_dsn, proxy))
        trap = proxy.trap("Q", "SELECT 7", moment=Moment.REPLY, fault=Fault.HOLE)
        query = asyncio.create_task(connection.execute("SELECT 7"))
        assert await trap.wait(5)
        done, _ = await asyncio.wait([query], timeout=0.2)
        assert not done
        connection.terminate()
        await asyncio.gather(query, return_exceptions=True)


async def test_held_traffic_arrives_when_it_is_released_and_trickles_when_told(
    database_dsn: str,
) -> None:
    async with _proxy(database_dsn) as proxy:
        connection = await asyncpg.connect(through(database_dsn, proxy))
        proxy.hold()
        query = asyncio.create_task(connection.fetchval("SELECT 7"))
        done, _ = await asyncio.wait([query], timeout=0.1)
        assert not done
        proxy.release()
        assert await query == 7
        proxy.trickle_bytes = 3
        assert await connection.fetchval("SELECT repeat('x', 99)") == "x" * 99
        await connection.close()


async def test_delayed_traffic_arrives_late_and_whole(database_dsn: str) -> None:
    loop = asyncio.get_running_loop()
    async with _proxy(database_dsn) as proxy:
        connection = await asyncpg.connect(through(database_dsn, proxy))
        proxy.delay_s = 0.1
        started = loop.time()
        assert await connection.fetchval("SELECT repeat('x', 99)") == "x" * 99
        assert loop.time() - started >= 2 * proxy.delay_s  # there and back
        proxy.delay_s = 0.0
        await connection.close()


async def test_new_connections_are_cut_after_their_first_bytes() -> None:
    received: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(100):
                data += piece
        received.append(data)
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with Proxy(host, port) as proxy:
        traps = [proxy.trap_opening(count) for count in (1, 10)]
        left = proxy.trap_opening(10)
        proxy.disarm(left)
        for _ in range(3):
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            writer.write(b"x" * 50)
            with contextlib.suppress(OSError):
                writer.write_eof()
                assert await reader.read() == b""
            writer.close()
        await eventually_async(lambda: len(received) == 3)
        assert [await trap.wait(5) for trap in traps] == [True, True]
        assert left.outcome is None
    server.close()
    one, ten, all_of_it = sorted(len(data) for data in received)
    assert one <= 1  # what is forwarded just before a reset may be lost with it
    assert ten <= 10
    assert all_of_it == 50


async def test_reset_of_one_side_reaches_the_other() -> None:
    async def answer_then_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)  # more arrives: closing with it unread sends RST
        writer.transport.abort()

    server = await asyncio.start_server(answer_then_reset, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with Proxy(host, port) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"x" * 100_000)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
    server.close()
