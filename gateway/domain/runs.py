"""Runs as values: what the store returns and the services show."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final
from uuid import UUID

from gateway.domain.metadata import DatasetInput, Entry, SummaryValue

RUN_METRICS_MAX: Final = 10_000
"""Metrics that a run shows, the first by key: with keys of 250 letters 3.1 MB, below the 4 MiB
that a gRPC client receives by default. ListSeries has all."""

_CORE_BYTES: Final = 200
_ATTEMPT_BYTES: Final = 32
_METRIC_BYTES: Final = 64
_ITEM_BYTES: Final = 12


class RunState(IntEnum):
    """What a run's job is doing; the numbers of headrace.v1.RunState."""

    RUNNING = 1
    FINISHED = 2
    FAILED = 3
    KILLED = 4
    LOST = 5


END_STATES: Final = frozenset({RunState.FINISHED, RunState.FAILED, RunState.KILLED})
"""The states that FinishRun may set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One (re)start of a run's job; see headrace.v1.Attempt."""

    attempt: int
    resume_step: int | None
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetric:
    """What searches know of one metric of a run; see headrace.v1.RunMetric."""

    key: str
    rank: int
    point_count: int
    last_step: int
    last_time_us: int
    last_value: float
    min_value: float
    max_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What was written of a run: all ordered by key, datasets in the order of writing;
    `exempt_keys` by attempt."""

    params: tuple[tuple[str, str], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    summary: tuple[SummaryValue, ...] = ()
    metrics: tuple[RunMetric, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    datasets: tuple[DatasetInput, ...] = ()
    exempt_keys: tuple[tuple[int, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrigin:
    """Where a run comes from; empty is unknown."""

    user_name: str = ""
    host: str = ""
    git_commit: str = ""
    entry_point: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What CreateRun asks for.

    Attributes:
        entries: what else is known at the start.
        started_at: None is now.
    """

    run_id: UUID
    workspace_id: int
    experiment: str
    name: str
    step_policy: int
    late_policy: int
    parent_run_id: UUID | None = None
    started_at: datetime | None = None
    origin: RunOrigin = RunOrigin()
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training job; see headrace.v1.Run. Policies are numbers of the contract."""

    run_id: UUID
    experiment_id: int
    experiment: str
    name: str
    state: RunState
    step_policy: int
    late_policy: int
    created_at: datetime
    started_at: datetime
    ended_at: datetime | None
    deleted_at: datetime | None
    heartbeat_at: datetime | None
    parent_run_id: UUID | None
    origin: RunOrigin
    notes: str
    attempts: tuple[Attempt, ...]
    data: RunData = RunData()

    def answer_bytes(self) -> int:
        """Return about how many bytes it has in an answer, rather more than fewer."""
        data = self.data
        texts = [self.name, self.experiment, self.notes, self.origin.user_name, self.origin.host]
        texts += (self.origin.git_commit, self.origin.entry_point)
        for pairs in (data.params, data.tags, data.facts):
            for pair in pairs:
                texts += pair
        for item in data.summary:
            texts += (item.key, item.value if isinstance(item.value, str) else "")
        for dataset in data.datasets:
            texts += (dataset.name, dataset.digest, dataset.context, dataset.source_type)
            texts += (dataset.source, dataset.schema, dataset.profile)
        for _, keys in data.exempt_keys:
            texts += keys
        return (
            _CORE_BYTES
            + _ATTEMPT_BYTES * len(self.attempts)
            + _METRIC_BYTES * len(data.metrics)
            + _ITEM_BYTES * len(texts)
            + sum(map(_utf8_bytes, texts))
            + sum(_utf8_bytes(metric.key) for metric in data.metrics)
        )


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def readable_name(run_id: UUID) -> str:
    """Return a name for people, always the same for a run: `brisk-heron-417`."""
    digest = hashlib.sha256(run_id.bytes).digest()
    adjective = _ADJECTIVES[digest[0] % len(_ADJECTIVES)]
    noun = _NOUNS[digest[1] % len(_NOUNS)]
    return f"{adjective}-{noun}-{int.from_bytes(digest[2:4]) % 900 + 100}"


_ADJECTIVES: Final = (  # noqa: SIM905 - a list of words
    "amber bold brisk calm clear cool crisp deep early even fair fast fine firm fresh glad golden "
    "grand green high keen kind light lively long lucky mellow mild neat noble pale plain proud "
    "quick quiet rapid rare ready rosy round sharp shy silent silver smooth soft solid steady "
    "still sunny sure swift tall tidy true vivid warm wide wild wise young zesty"
).split()
_NOUNS: Final = (  # noqa: SIM905 - a list of words
    "alder ash badger bay beaver birch bison brook cedar cliff cloud coot crane creek dale deer "
    "delta dove dune eagle elm falcon fern finch fjord fox gale glade gorge grove gull hare hawk "
    "heath heron hill ibis isle jay kite lake larch lark lynx maple marsh meadow mink moor moss "
    "oak otter owl peak pike pine pond rapids raven reed ridge river robin sedge shoal sluice "
    "spring spruce stork stream swan tarn tern thrush tide trout vale weir willow wren"
).split()
