"""Metrics go first; artifacts are slow beside metrics that are late, and never stop."""

import asyncio

from gateway.artifacts.precedence import Precedence
from tests.support.virtual_time import in_virtual_time

_MIB = 1024 * 1024
_CHUNK = _MIB // 2


async def passed_in(precedence: Precedence, seconds: float) -> float:
    """How many MiB sixteen busy transfers move in a time."""
    clock = asyncio.get_running_loop().time
    end, moved = clock() + seconds, 0

    async def transfer() -> None:
        nonlocal moved
        while clock() < end:
            await precedence.give_way(_CHUNK)
            moved += _CHUNK

    await asyncio.gather(*(transfer() for _ in range(16)))
    return moved / _MIB


async def test_one_chunk_passes_in_a_round_of_the_loop() -> None:
    precedence, loop = Precedence(lambda: 0.0), asyncio.get_running_loop()
    rounds, passed = 0, list[int]()

    def count() -> None:
        nonlocal rounds
        rounds += 1
        counting = loop.call_soon(count)
        if len(passed) == 64:
            counting.cancel()

    async def upload() -> None:
        for _ in range(4):
            await precedence.give_way(_CHUNK)
            passed.append(rounds)

    count()
    await asyncio.gather(*(upload() for _ in range(16)))
    assert len(set(passed)) == 64


@in_virtual_time
async def test_transfers_beside_late_metrics_slow_down_and_do_not_stop() -> None:
    wait_s = 0.0
    precedence = Precedence(lambda: wait_s)
    alone = await passed_in(precedence, 0.5)
    wait_s = 0.5
    await passed_in(precedence, 1.5)  # until the rate is at its least
    beside = await passed_in(precedence, 1.0)
    assert 4 <= beside <= 20  # 8 MiB a second, and a chunk that each transfer had begun
    assert alone > 5 * beside


@in_virtual_time
async def test_the_rate_rises_beside_metrics_in_time_and_at_once_without_any() -> None:
    wait_s = 0.5
    precedence = Precedence(lambda: wait_s)
    await passed_in(precedence, 1.5)
    wait_s = 0.001
    await rises_to(precedence, 40.0, within_s=20.0)
    wait_s = 0.0
    await rises_to(precedence, 400.0, within_s=3.0)


@in_virtual_time
async def test_a_database_that_is_always_slow_becomes_the_usual() -> None:
    precedence = Precedence(lambda: 0.03)
    await passed_in(precedence, 1.5)
    await rises_to(precedence, 40.0, within_s=30.0)


async def rises_to(precedence: Precedence, mib_per_s: float, *, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while await passed_in(precedence, 0.5) < mib_per_s * 0.5:
            pass
