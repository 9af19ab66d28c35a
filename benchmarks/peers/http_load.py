"""Requests over HTTP in a closed loop: each client sends its next when the last is answered.

Bodies are bytes that were built before the clock started. A request that fails,
is refused or takes longer than its deadline is an error and is counted; what it
carried is not.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import numpy as np

REQUEST_DEADLINE_S: Final = 35.0  # servers that give up after 30 s are heard

Body = Callable[[int, int], bytes | None]
"""The body of (client, request number), or None when the client has sent all."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was answered.

    Attributes:
        seconds: from the first request to the last answer.
        answered_s: when each request was answered that got a status below 300; in order.
        failed: all others.
        latencies_ms: of all of them.
        failures: an example of each kind of failure, and how often it happened.
    """

    seconds: float = 0.0
    answered_s: list[float] = field(default_factory=list)
    failed: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def succeeded(self) -> int:
        """How many requests got a status below 300."""
        return len(self.answered_s)

    @property
    def per_second(self) -> float:
        """Successes a second, until 99 of 100 were answered: one that hangs is no rate."""
        most = math.ceil(0.99 * self.succeeded)
        return most / self.answered_s[most - 1] if most else 0.0

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies; 0 when there are none."""
        return float(np.percentile(self.latencies_ms or [0.0], percent))

    def fail(self, reason: str) -> None:
        """Count a failure."""
        self.failed += 1
        self.failures[reason] = self.failures.get(reason, 0) + 1


async def hammer(
    url: str,
    body: Body,
    *,
    clients: int,
    duration_s: float = float("inf"),
    headers: Mapping[str, str] | None = None,
) -> Tally:
    """POST bodies from `clients` connections until they end or the time is over.

    Args:
        url: where to.
        body: called in order for each client, on the event loop: it must not build anything.
        clients: connections, each with one request in flight.
        duration_s: no request begins after it.
        headers: of every request.
    """
    tally = Tally()
    timeout = aiohttp.ClientTimeout(total=REQUEST_DEADLINE_S)
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=dict(headers or {})
    ) as session:
        started = time.perf_counter()

        async def client(number: int) -> None:
            count = 0
            while time.perf_counter() - started < duration_s:
                data = body(number, count)
                if data is None:
                    return
                count += 1
                sent = time.perf_counter()
                try:
                    async with session.post(url, data=data) as answer:
                        text = await answer.text()
                        if answer.status < 300:
                            tally.answered_s.append(time.perf_counter() - started)
                        else:
                            tally.fail(f"{answer.status} {text[:160]}")
                except TimeoutError:
                    tally.fail(f"no answer in {REQUEST_DEADLINE_S:.0f} s")
                except aiohttp.ClientError as error:
                    tally.fail(type(error).__name__)
                tally.latencies_ms.append(1e3 * (time.perf_counter() - sent))

        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number))
        tally.seconds = time.perf_counter() - started
    return tally
