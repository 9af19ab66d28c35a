"""Metrics go first; artifacts are slow beside a database that is slow, and never stop."""

import asyncio

from gateway.artifacts.precedence import Precedence


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
            await precedence.give_way()
            passed.append(rounds)

    count()
    await asyncio.gather(*(upload() for _ in range(16)))
    assert len(set(passed)) == 64


async def test_nothing_passes_while_a_flush_is_late_and_all_does_when_it_is_over() -> None:
    age_s = 0.03
    precedence = Precedence(lambda: age_s)
    waiting = [asyncio.create_task(precedence.give_way()) for _ in range(3)]
    done, _ = await asyncio.wait(waiting, timeout=0.02)
    assert not done
    age_s = 0.0
    await asyncio.wait_for(asyncio.gather(*waiting), 0.04)


async def test_a_flush_that_never_ends_lets_a_chunk_pass_every_50_ms() -> None:
    precedence = Precedence(lambda: 1.0)
    clock = asyncio.get_running_loop().time
    began = clock()
    for passed in range(1, 4):
        await precedence.give_way()
        assert 0.05 * passed <= clock() - began
