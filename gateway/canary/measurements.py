"""What the canary found: for Prometheus while it runs, as one value at its end."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.canary.ledger import Verdict

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LATENCIES_MAX: Final = 100_000
"""Kept for the report of a bounded run: a day of beats."""


@dataclass(slots=True, kw_only=True)
class Totals:
    """Counted since the start."""

    beats: int = 0
    written: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    wrong: int = 0
    failures: int = 0
    ack_seconds: list[float] = field(default_factory=list)
    read_seconds: list[float] = field(default_factory=list)


class Measurements:
    """Counts and times; `registry` exports them.

    Attributes:
        registry: of Prometheus, with `headrace_canary_*`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._totals = Totals()

        def counter(name: str, text: str) -> Counter:
            return Counter(f"headrace_canary_{name}", text, registry=self.registry)

        self._written = counter("records_written", "Records sent.")
        self._acknowledged = counter("records_acknowledged", "Records acknowledged.")
        self._faults = Counter(
            "headrace_canary_faults",
            "Points that were lost, doubled, disordered or wrong. Must stay zero.",
            ("kind",),
            registry=self.registry,
        )
        for kind in Verdict.__dataclass_fields__:
            self._faults.labels(kind)  # zero is exported too
        self._failures = counter("failures", "Calls that the gateway failed or did not answer.")
        self._last_success = Gauge(
            "headrace_canary_last_success_unix_s",
            "When a read last showed all that was written.",
            registry=self.registry,
        )
        self._ack_seconds = Histogram(
            "headrace_canary_ack_seconds",
            "Seconds from sending a batch to its acknowledgement.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._read_seconds = Histogram(
            "headrace_canary_read_seconds",
            "Seconds to read the latest steps back.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def wrote(self, records: int) -> None:
        """Count what was sent."""
        self._totals.written += records
        self._written.inc(records)

    def acknowledged(self, records: int) -> None:
        """Count what was acknowledged."""
        self._totals.acknowledged += records
        self._acknowledged.inc(records)

    def waited(self, seconds: float) -> None:
        """Time an acknowledgement."""
        self._ack_seconds.observe(seconds)
        if len(self._totals.ack_seconds) < _LATENCIES_MAX:
            self._totals.ack_seconds.append(seconds)

    def read(self, seconds: float) -> None:
        """Time a read."""
        self._read_seconds.observe(seconds)
        if len(self._totals.read_seconds) < _LATENCIES_MAX:
            self._totals.read_seconds.append(seconds)

    def judged(self, verdict: Verdict) -> None:
        """Count what a read showed."""
        self._totals.beats += 1
        for kind, count in asdict(verdict).items():
            setattr(self._totals, kind, getattr(self._totals, kind) + count)
            self._faults.labels(kind).inc(count)
        if verdict.healthy:
            self._last_success.set(time.time())

    def failed(self) -> None:
        """Count a failed call."""
        self._totals.failures += 1
        self._failures.inc()

    @property
    def healthy(self) -> bool:
        """Whether something was read back, and nothing was amiss."""
        totals = self._totals
        faults = totals.lost + totals.doubled + totals.disordered + totals.wrong
        return bool(totals.read_seconds) and not faults

    def report(self) -> dict[str, Any]:
        """Return the totals, with latencies as percentiles in milliseconds."""
        found = asdict(self._totals)
        for name in ("ack", "read"):
            times_ms = 1e3 * np.asarray(found.pop(f"{name}_seconds") or [0.0])
            for percent in (50, 99, 100):
                found[f"{name}_p{percent}_ms"] = round(float(np.percentile(times_ms, percent)), 3)
        return found
