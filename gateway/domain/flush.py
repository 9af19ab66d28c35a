"""What `ingest` hands to `store` for one flush, and how `store` answers.

Plain values: `ingest` decides what they hold, `store` writes them, and neither
imports the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final
from uuid import UUID

from gateway.domain.errors import Reason
from gateway.domain.metadata import MetadataRows, Refusal

CHUNK_COLUMNS: Final = (
    "run_id",
    "series_id",
    "writer_no",
    "last_sequence",
    "first_step",
    "last_step",
    "first_time",
    "min_value",
    "max_value",
    "attempt",
    "step_offsets",
    "time_offsets",
    "point_values",
)
"""The columns of both tables of chunks, in the order in which `ingest` packs and `store` copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionSample:
    """One sample of rejected points or a rejected entry; see Rejection in metric_service.proto."""

    reason: Reason
    key: str
    step: int
    sequence: int
    field: str
    detail: str
    points: int


def refusal_sample(refusal: Refusal, *, sequence: int) -> RejectionSample:
    """Return the sample of a refused metadata entry."""
    return RejectionSample(
        reason=refusal.reason,
        key=refusal.key,
        step=0,
        sequence=sequence,
        field=refusal.field,
        detail=refusal.detail,
        points=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Durable counts of a writer."""

    accepted_points: int = 0
    late_points: int = 0
    repeated_points: int = 0
    rejected_points: int = 0
    lost_records: int = 0
    rejected_entries: int = 0

    def plus(self, other: "Counters") -> "Counters":
        """Return the sum, field by field."""
        return Counters(
            accepted_points=self.accepted_points + other.accepted_points,
            late_points=self.late_points + other.late_points,
            repeated_points=self.repeated_points + other.repeated_points,
            rejected_points=self.rejected_points + other.rejected_points,
            lost_records=self.lost_records + other.lost_records,
            rejected_entries=self.rejected_entries + other.rejected_entries,
        )

    def plus_lost(self, records: int) -> "Counters":
        """Return the counts with more lost records."""
        return replace(self, lost_records=self.lost_records + records)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """A validated `open` message with the workspace of its caller."""

    workspace_id: int
    run_id: UUID
    writer_id: UUID
    incarnation: UUID
    rank: int
    attempt: int
    resume_step: int | None
    resume_exempt_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRows:
    """Rows of writer_summaries: each covers `block`'s series `[lo, hi]` of the flat columns.

    `lo` and `hi` are 1-based and inclusive, PostgreSQL's array slices. The flat
    columns have one element a series; int64 but for the three values (float64).
    """

    run_ids: list[UUID] = field(default_factory=list)
    writer_nos: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    lo: list[int] = field(default_factory=list)
    hi: list[int] = field(default_factory=list)
    series_ids: list[int] = field(default_factory=list)
    point_counts: list[int] = field(default_factory=list)
    last_steps: list[int] = field(default_factory=list)
    last_times: list[int] = field(default_factory=list)
    last_values: list[float] = field(default_factory=list)
    min_values: list[float] = field(default_factory=list)
    max_values: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedWriter:
    """What the store knows of a writer after its epoch was incremented."""

    run_id: UUID
    writer_id: UUID
    writer_no: int
    rank: int
    attempt: int
    epoch: int
    committed_sequence: int
    finished: bool
    rejects_late: bool
    counters: Counters
    rejections: tuple[RejectionSample, ...]
    summaries: SummaryRows


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterAdvance:
    """One writer's part of a flush: its watermark moves from first - 1 to last."""

    run_id: UUID
    writer_id: UUID
    epoch: int
    first_sequence: int
    last_sequence: int
    counters: Counters  # to be added
    rejections: tuple[RejectionSample, ...] | None  # the new samples; None keeps the old ones


class Mismatch(Enum):
    """Why a writer's row is not what its stream left it as; the stream can store nothing more."""

    FENCED = auto()
    """A newer stream of the writer was opened."""
    BEHIND = auto()
    """Nobody opened a newer one: the row lost commits with a failover or is gone, so the
    writer has to be opened again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFlush:
    """One flush, ready to be written: one transaction."""

    advances: list[WriterAdvance]
    copy_pieces: list[memoryview]  # of chunks, PostgreSQL's binary COPY format, whole
    summaries: SummaryRows
    marks: "LateMarks | None"
    points: int
    chunks: int
    metadata: MetadataRows | None = None  # its places are those of `advances`


@dataclass(frozen=True, slots=True, kw_only=True)
class LateMarks:
    """High-water marks by (run, series, attempt), columns of equal length.

    `last_steps` holds None for a series without points yet.
    """

    run_ids: list[UUID]
    series_ids: list[int]
    attempts: list[int]
    last_steps: Sequence[int | None]


class FlushDataError(Exception):
    """The store refused the content of a flush; another flush may well succeed."""


class FlushConflictError(Exception):
    """The transaction lost against another one and was rolled back; repeat it."""


class FlushUnavailableError(Exception):
    """The store cannot commit now; nothing of the flush is committed. Repeat it later."""


class FlushUnexplainedError(FlushUnavailableError):
    """The store failed in a way that is no known condition of it; a writer's content may be why."""


class FlushTimeoutError(FlushUnavailableError):
    """The store took too long; a smaller flush may well succeed."""


class FlushAmbiguousError(Exception):
    """The connection broke during COMMIT: the flush may be committed or not."""
