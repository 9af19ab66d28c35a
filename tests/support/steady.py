"""A steady load that must come through whatever is done to the servers meanwhile.

Raw streams at a stated pace, in this process, resuming like real clients. The
journal says what was acknowledged; at the end the oracle compares.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from benchmarks.plan import Mix
from benchmarks.raw_streams import Journal, Result, Traffic, run
from tests.support.oracle import Audit, Oracle

STREAMS: Final = 12
RECOVERY_S: Final = 45.0
"""Within which every stream is acknowledged again once a fault has passed; 3 s is usual."""


class Steady:
    """See the module; made by `steady`.

    Attributes:
        traffic: what is sent.
        recovery_s: the longest that `recovered` ever waited.
        audit: what the oracle counted; known after `steady` has ended.
    """

    def __init__(self, traffic: Traffic, journal: Path) -> None:
        self.traffic = traffic
        self.recovery_s = 0.0
        self.audit = Audit()
        self._journal = journal

    @property
    def points(self) -> int:
        """Stored in the end, each exactly once."""
        return self.audit.points

    def acknowledged(self) -> list[int]:
        """Return each stream's acknowledged watermark."""
        if not self._journal.exists():
            return [0] * self.traffic.streams
        found = [int(watermark) for watermark in Journal.read(str(self._journal))[:, 1]]
        return found + [0] * (self.traffic.streams - len(found))

    async def recovered(self, records: int = 3) -> None:
        """Return when every stream was acknowledged some more records.

        Raises:
            AssertionError: one was not within RECOVERY_S.
        """
        started = time.monotonic()
        goals = [watermark + records for watermark in self.acknowledged()]
        while any(now < goal for now, goal in zip(self.acknowledged(), goals, strict=True)):
            waited = time.monotonic() - started
            assert waited < RECOVERY_S, f"stalled: {self.acknowledged()}, wanted {goals}"
            await asyncio.sleep(0.02)
        self.recovery_s = max(self.recovery_s, time.monotonic() - started)

    async def stalled(self, for_s: float = 1.0) -> None:
        """Return when no stream was acknowledged anything for a while: the fault bites.

        Raises:
            AssertionError: acknowledgements went on for RECOVERY_S.
        """
        started = quiet_since = time.monotonic()
        before = self.acknowledged()
        while time.monotonic() - quiet_since < for_s:
            assert time.monotonic() - started < RECOVERY_S, "acknowledgements went on"
            await asyncio.sleep(0.02)
            if (now := self.acknowledged()) != before:
                before, quiet_since = now, time.monotonic()


@contextlib.asynccontextmanager
async def steady(
    address: str, dsn: str, directory: Path, *, points_per_s: int = 12_000, seed: int = 1
) -> AsyncIterator[Steady]:
    """Load the gateway inside the block; then let it drain, and assert: each point once.

    Args:
        address: of the gateway, or of a proxy before it.
        dsn: of its database, for the oracle: not through a proxy.
        directory: for the journal.
        points_per_s: of all streams together.
        seed: of run and writer ids.
    """
    traffic = Traffic(
        streams=STREAMS,
        series=10,
        batch_points=100,
        window_batches=8,
        points_per_s=points_per_s,
        mix=Mix(swapped=0.1, repeated=0.05, late=0.05, special_values=True),
        resume=True,
        recut=True,
        seed=seed,
    )
    journal = directory / f"steady-{seed}.journal"
    load = Steady(traffic, journal)
    stop = asyncio.Event()
    running = asyncio.create_task(run(address, traffic, journal=Journal(str(journal)), stop=stop))
    try:
        await load.recovered()
        load.recovery_s = 0.0  # that was the start
        yield load
    except BaseException:
        stop.set()
        await asyncio.wait([running], timeout=5)  # streams of a dead gateway never end
        running.cancel()
        raise
    stop.set()
    result: Result = await running
    assert not result.errors, result.errors
    async with Oracle(dsn) as oracle:
        load.audit = oracle.audit
        pairs = Journal.read(str(journal)).tolist()
        assert len(pairs) == STREAMS
        for stream, (sent, acknowledged) in enumerate(pairs):
            await oracle.check_writer(
                traffic.plan(stream),
                run_id=traffic.run_id(stream),
                writer_id=traffic.writer_id(stream),
                sent=sent,
                acknowledged=acknowledged,
            )
