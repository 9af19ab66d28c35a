"""Runs as the gateway knows them: values, and how they are read from the contract. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1 import run_service_pb2 as pb

StepPolicy = Literal["last", "first", "all"]
Visibility = Literal["active", "deleted", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptInfo:
    """One (re)start of a run's job.

    Attributes:
        attempt: its number, from 1.
        resume_step: the first step it computed anew; None hides nothing.
        started_at: when the gateway first heard of it, UTC.
    """

    attempt: int
    resume_step: int | None
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """A dataset that a run used; see DatasetInput in run_service.proto."""

    name: str
    digest: str
    context: str
    source_type: str
    source: str
    schema: str
    profile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """What is known of one metric of a run, of its lowest rank.

    Some seconds old while the run goes on, exact once it has ended.

    Attributes:
        last: the value of the greatest visible point by (step, time, value).
        last_step: its step.
        min, max: NaN ignored; NaN if all are.
        point_count: visible points, repeats included.
    """

    last: float
    last_step: int
    min: float
    max: float
    point_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run as the gateway knows it.

    Attributes:
        run_id: 32 hex digits.
        experiment: its experiment's name.
        name: for people.
        state: `RUNNING`, `FINISHED`, `FAILED`, `KILLED` or `LOST`.
        step_policy: what reads apply that ask for nothing else.
        created_at, started_at: UTC.
        ended_at: None while it runs.
        deleted_at: None when it is not.
        heartbeat_at: when the gateway last heard of its job; None: never.
        attempts: ascending.
        parent_run_id: empty for none.
        user_name, host, git_commit, entry_point: empty when unknown.
        facts: of the environment, by name.
        params, tags, summary, metrics: by key; of metrics the first 10,000 (`Client.series`
            has all). What a change returns has no metrics, and not all else of a run of
            more than 1 MiB; `Client.run` has it.
        datasets: in the order in which they were written; not in searches, nor of a change.
    """

    run_id: str
    experiment: str
    name: str
    state: str
    step_policy: StepPolicy
    created_at: datetime
    started_at: datetime
    ended_at: datetime | None = None
    deleted_at: datetime | None = None
    heartbeat_at: datetime | None = None
    attempts: tuple[AttemptInfo, ...] = ()
    experiment_id: int = 0
    parent_run_id: str = ""
    user_name: str = ""
    host: str = ""
    git_commit: str = ""
    entry_point: str = ""
    notes: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, float | str] = field(default_factory=dict)
    metrics: Mapping[str, MetricInfo] = field(default_factory=dict)
    datasets: tuple[DatasetInfo, ...] = ()


def run_info(run: pb.Run) -> RunInfo:
    """The value of a message."""
    return RunInfo(
        run_id=run.run_id,
        experiment=run.experiment,
        experiment_id=run.experiment_id,
        name=run.name,
        state=pb.RunState.Name(run.state).removeprefix("RUN_STATE_"),
        step_policy=_step_policy(run.step_policy),
        created_at=time_of(run.create_time),
        started_at=time_of(run.start_time),
        ended_at=optional_time(run, "end_time"),
        deleted_at=optional_time(run, "delete_time"),
        heartbeat_at=optional_time(run, "heartbeat_time"),
        attempts=tuple(
            AttemptInfo(
                attempt=attempt.attempt,
                resume_step=attempt.resume_step if attempt.HasField("resume_step") else None,
                started_at=time_of(attempt.start_time),
            )
            for attempt in run.attempts
        ),
        parent_run_id=run.parent_run_id,
        user_name=run.user_name,
        host=run.host,
        git_commit=run.git_commit,
        entry_point=run.entry_point,
        notes=run.notes,
        facts=dict(run.facts),
        params={param.key: param.value for param in run.params},
        tags={tag.key: tag.value for tag in run.tags},
        summary={
            item.key: item.text if item.WhichOneof("value") == "text" else item.number
            for item in run.summary
        },
        metrics={
            metric.key: MetricInfo(
                last=metric.last,
                last_step=metric.last_step,
                min=metric.min,
                max=metric.max,
                point_count=metric.point_count,
            )
            for metric in run.metrics
        },
        datasets=tuple(
            DatasetInfo(
                name=item.name,
                digest=item.digest,
                context=item.context,
                source_type=item.source_type,
                source=item.source,
                schema=item.schema,
                profile=item.profile,
            )
            for item in run.datasets
        ),
    )


def visibility_value(visibility: Visibility) -> pb.Visibility.ValueType:
    """The number of a visibility."""
    return pb.Visibility.Value(f"VISIBILITY_{visibility.upper()}")


def time_of(timestamp: Timestamp) -> datetime:
    """A time in UTC."""
    return timestamp.ToDatetime(UTC)


def optional_time(message: Any, name: str) -> datetime | None:
    """A time that may be absent."""
    return time_of(getattr(message, name)) if message.HasField(name) else None


def _step_policy(number: pb.StepPolicy.ValueType) -> StepPolicy:
    return cast("StepPolicy", pb.StepPolicy.Name(number).removeprefix("STEP_POLICY_").lower())
