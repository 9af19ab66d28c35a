"""How much every scenario sends: one value, parsed from the command line.

The points themselves come from `benchmarks.plan`, for the gateway and for the
baselines alike.
"""

from dataclasses import dataclass

from benchmarks.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much a round sends.

    Attributes:
        brief: a run of minutes: fewer rounds, and MLflow with one number of jobs.
        streams: concurrent writers, each of a run of its own.
        series: series of each run; a step writes all of them.
        batch_points: points in one message of a raw stream.
        raw_points: points of a round of raw streams.
        copy_points: points of a round of COPY, a multiple of streams x series.
            Fewer than raw_points favours COPY: its index stays small.
        wide_series: keys that the wide run logs at each step.
        wide_points: points of a round of the wide run.
        paced_points_per_s: the steady load under which acks are timed.
        paced_s: for how long.
        idle_streams: streams opened to weigh them.
        client_points: points that each Python client logs.
        growth_points: points of the database that growth compares with an empty one.
        soak_minutes: rounds of a minute each of the soak.
        search_runs: runs to search among.
        compaction_points: points of the series that is compacted.
    """

    brief: bool = False
    streams: int = 64
    series: int = 20
    batch_points: int = 1_000
    raw_points: int = 12_800_000
    copy_points: int = 1_280_000
    wide_series: int = 50_000
    wide_points: int = 1_000_000
    paced_points_per_s: int = 100_000
    paced_s: float = 8.0
    idle_streams: int = 5_000
    client_points: int = 50_000
    growth_points: int = 20_000_000
    soak_minutes: int = 0
    search_runs: int = 100_000
    compaction_points: int = 1_000_000

    @property
    def copy_steps(self) -> int:
        """Steps of each stream in a round of COPY."""
        return self.copy_points // (self.streams * self.series)

    def plan(self, stream: int) -> Plan:
        """Return what a stream sends."""
        return Plan(stream=stream, series=self.series)
