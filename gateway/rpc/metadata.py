"""Metadata entries and runs: from the contract's messages to values and back."""

from collections.abc import Iterable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from headrace.v1 import run_service_pb2 as pb

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.limits import MESSAGE_BYTES_MAX
from gateway.domain.metadata import (
    ENTRIES_MAX,
    DatasetInput,
    Entry,
    Fact,
    Notes,
    Param,
    SummaryValue,
    Tag,
    Unknown,
)
from gateway.domain.runs import Run


def entries(messages: Iterable[pb.MetadataEntry], *, field: str) -> tuple[Entry, ...]:
    """Return the entries of a message; their content is judged by `domain.metadata`.

    Raises:
        HeadraceError: LIMIT_EXCEEDED.
    """
    found = tuple(map(_entry, messages))
    if len(found) > ENTRIES_MAX:
        raise HeadraceError(
            Reason.LIMIT_EXCEEDED,
            f"{field} has {len(found)} entries, more than {ENTRIES_MAX}",
            field=field,
            value=len(found),
            limit=ENTRIES_MAX,
        )
    return found


def _entry(message: pb.MetadataEntry) -> Entry:  # noqa: PLR0911 - one for each kind
    match message.WhichOneof("entry"):
        case "param":
            return Param(key=message.param.key, value=message.param.value)
        case "tag":
            return Tag(key=message.tag.key, value=message.tag.value)
        case "deleted_tag":
            return Tag(key=message.deleted_tag, value=None)
        case "notes":
            return Notes(text=message.notes)
        case "summary" if message.summary.WhichOneof("value") == "text":
            return SummaryValue(key=message.summary.key, value=message.summary.text)
        case "summary" if message.summary.WhichOneof("value") == "number":
            return SummaryValue(key=message.summary.key, value=message.summary.number)
        case "dataset":
            return DatasetInput(
                name=message.dataset.name,
                digest=message.dataset.digest,
                context=message.dataset.context,
                source_type=message.dataset.source_type,
                source=message.dataset.source,
                schema=message.dataset.schema,
                profile=message.dataset.profile,
            )
        case "fact":
            return Fact(name=message.fact.name, value=message.fact.value)
    return Unknown()


def run_message(run: Run) -> pb.Run:
    """Return a run as the contract shows it."""
    data = run.data
    exempt_keys = dict(data.exempt_keys)
    return pb.Run(
        run_id=run.run_id.hex,
        experiment=run.experiment,
        experiment_id=run.experiment_id,
        name=run.name,
        state=pb.RunState.ValueType(run.state),
        step_policy=pb.StepPolicy.ValueType(run.step_policy),
        late_policy=pb.LatePolicy.ValueType(run.late_policy),
        create_time=timestamp(run.created_at),
        start_time=timestamp(run.started_at),
        end_time=timestamp(run.ended_at),
        delete_time=timestamp(run.deleted_at),
        heartbeat_time=timestamp(run.heartbeat_at),
        parent_run_id="" if run.parent_run_id is None else run.parent_run_id.hex,
        user_name=run.origin.user_name,
        host=run.origin.host,
        git_commit=run.origin.git_commit,
        entry_point=run.origin.entry_point,
        notes=run.notes,
        facts=dict(data.facts),
        params=[pb.Param(key=key, value=value) for key, value in data.params],
        tags=tag_messages(data.tags),
        summary=[
            pb.SummaryValue(key=item.key, text=item.value)
            if isinstance(item.value, str)
            else pb.SummaryValue(key=item.key, number=item.value)
            for item in data.summary
        ],
        datasets=[
            pb.DatasetInput(
                name=item.name,
                digest=item.digest,
                context=item.context,
                source_type=item.source_type,
                source=item.source,
                schema=item.schema,
                profile=item.profile,
            )
            for item in data.datasets
        ],
        metrics=[
            pb.RunMetric(
                key=item.key,
                last=item.last_value,
                last_step=item.last_step,
                last_time_unix_us=item.last_time_us,
                min=item.min_value,
                max=item.max_value,
                point_count=item.point_count,
                rank=item.rank,
            )
            for item in data.metrics
        ],
        attempts=[
            pb.Attempt(
                attempt=attempt.attempt,
                resume_step=attempt.resume_step,
                start_time=timestamp(attempt.started_at),
                resume_exempt_keys=exempt_keys.get(attempt.attempt, ()),
            )
            for attempt in run.attempts
        ],
    )


def changed_run_message(run: Run) -> pb.Run:
    """Return a run as the answer to a change of it shows it: of bounded size, for an answer
    that the client cannot receive says nothing of the change, and is asked for again for ever.
    """
    message = run_message(run)
    for field in ("params", "tags", "summary", "facts"):
        if message.ByteSize() <= MESSAGE_BYTES_MAX:
            break
        message.ClearField(field)
    return message


def tag_messages(tags: Iterable[tuple[str, str]]) -> list[pb.Tag]:
    """Return tags as the contract shows them."""
    return [pb.Tag(key=key, value=value) for key, value in tags]


def timestamp(at: datetime | None) -> Timestamp | None:
    """Return a time as the contract shows it."""
    if at is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def time_of(stamp: Timestamp, *, field: str) -> datetime:
    """Return a timestamp's time.

    Raises:
        HeadraceError: FIELD_INVALID outside the years 1 to 9999.
    """
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"{field} is no time of the years 1 to 9999",
            field=field,
            value=stamp.seconds,
        ) from None
