"""The benchmarks' own HTTP/2: what it sends arrives whole, and an early end is noticed."""

import asyncio

from benchmarks.raw_streams import Traffic, run
from tests.support.gateway_process import GatewayProcess
from tests.support.oracle import Oracle


async def test_every_point_sent_over_bare_calls_is_stored(shared_gateway: GatewayProcess) -> None:
    # Messages of one frame and of many, beyond what HTTP/2's windows hold at once.
    for batch_points in (20, 8_000):
        traffic = Traffic(streams=4, batch_points=batch_points, stream_points=80_000, bare=True)
        result = await run(shared_gateway.address, traffic)
        assert not result.errors
        async with Oracle(shared_gateway.dsn) as oracle:
            for stream in range(traffic.streams):
                await oracle.check_writer(
                    traffic.plan(stream),
                    run_id=traffic.run_id(stream),
                    writer_id=traffic.writer_id(stream),
                    sent=4_000,
                    acknowledged=result.committed_sequences[stream],
                )


async def test_a_gateway_that_dies_under_a_bare_call_is_an_error(
    mortal_gateway: GatewayProcess,
) -> None:
    ready = asyncio.Event()
    traffic = Traffic(streams=2, duration_s=60, bare=True, seed=2)
    running = asyncio.create_task(run(mortal_gateway.address, traffic, on_ready=ready.set))
    await asyncio.wait_for(ready.wait(), 30)
    mortal_gateway.kill()
    result = await asyncio.wait_for(running, 30)
    assert len(result.errors) == 2
