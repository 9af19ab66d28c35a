"""Reads runs back: `headrace.Client`.

    client = headrace.Client("127.0.0.1:7420")
    loss = client.read(run_id, keys=["train/loss"], max_points=1_000)["train/loss"]
    plot(loss.step, loss.value)

Calls wait for the gateway while it is away, up to `patience_s`, and raise
GatewayError. A client may be shared by threads, but not be used across a fork.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.calls import gateway_error, retried
from headrace.channel import call_metadata, open_blocking_channel
from headrace.columns import Columns, SeriesColumns, from_message, join
from headrace.errors import GatewayError
from headrace.settings import load_settings
from headrace.v1 import metric_service_pb2 as metrics_pb
from headrace.v1 import run_service_pb2 as runs_pb
from headrace.v1.metric_service_pb2_grpc import MetricServiceStub
from headrace.v1.run_service_pb2_grpc import RunServiceStub

if TYPE_CHECKING:
    from headrace.artifacts import Artifacts
    from headrace.transfers import Transfers

StepPolicy = Literal["last", "first", "all"]
Aggregation = Literal["mean", "min", "max", "sum"]

_CALL_TIMEOUT_S: Final = 60.0
_PAGE_SIZE: Final = 10_000
_Response = TypeVar("_Response")


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
class RunInfo:
    """A run as the gateway knows it.

    Attributes:
        run_id: 32 hex digits.
        experiment: its experiment's name.
        name: for people.
        state: `RUNNING`, `FINISHED`, `FAILED`, `KILLED` or `LOST`.
        step_policy: what reads apply that ask for nothing else.
        created_at: UTC.
        ended_at: None while it runs.
        heartbeat_at: when the gateway last heard of its job; None: never.
        attempts: ascending.
    """

    run_id: str
    experiment: str
    name: str
    state: str
    step_policy: StepPolicy
    created_at: datetime
    ended_at: datetime | None
    heartbeat_at: datetime | None
    attempts: tuple[AttemptInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesInfo:
    """A series and the summary of its visible points.

    Attributes:
        key: the metric's key.
        rank: of the process that logged it.
        point_count: visible points, repeats included.
        last_step: of the greatest point by (step, time, value).
        last_time: datetime64[us], UTC.
        last_value: of the same point.
        min_value: repeats included, NaN ignored; NaN if all are.
        max_value: likewise.
    """

    key: str
    rank: int
    point_count: int
    last_step: int
    last_time: np.datetime64
    last_value: float
    min_value: float
    max_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Something that `Client.follow` saw.

    Attributes:
        columns: new points of one series and attempt; None when the reader has
            caught up: what was there at the beginning has come, new points follow.
        generation: 1, and one more after each lost connection. The points of a
            generation are complete from its beginning and supersede what came in
            the one before.
    """

    columns: SeriesColumns | None
    generation: int


class Client:
    """Reads through one gateway. Close it, or use it as a context manager."""

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        patience_s: float = 30.0,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            address: `host:port`, or `https://host:port`; default HEADRACE_ADDRESS,
                else 127.0.0.1:7420.
            token: bearer token; default HEADRACE_TOKEN.
            tls_ca: PEM file of the authorities to trust; default HEADRACE_TLS_CA,
                else the system's.
            patience_s: how long a call is tried again while the gateway is away.

        Raises:
            ConfigurationError: the address has no host or port.
        """
        settings = load_settings(address=address, token=token, tls_ca=tls_ca)
        self._patience_s = patience_s
        self._metadata = tuple(call_metadata(settings))
        self._channel = open_blocking_channel(settings)
        self._runs = RunServiceStub(self._channel)
        self._metrics = MetricServiceStub(self._channel)
        self._token = settings.token
        self._transfers: Transfers | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; reads that still run fail."""
        if self._transfers is not None:
            self._transfers.close()
        self._channel.close()

    def artifacts(self, run_id: str) -> "Artifacts":
        """Return the artifacts of a run: list, download, open, upload, verify, delete."""
        from headrace.artifacts import Artifacts  # noqa: PLC0415 - most readers need none
        from headrace.transfers import Transfers  # noqa: PLC0415

        if self._transfers is None:
            self._transfers = Transfers(self._channel, token=self._token)
        return Artifacts(self._transfers, run_id)

    def run(self, run_id: str) -> RunInfo:
        """Return a run.

        Raises:
            GatewayError: RUN_NOT_FOUND, …
        """
        request = runs_pb.GetRunRequest(run_id=run_id)
        return _run_info(self._call(self._runs.GetRun, request).run)

    def series(self, run_id: str, *, prefix: str = "") -> list[SeriesInfo]:
        """Return the series of a run, ordered by (key, rank).

        Args:
            run_id: the run.
            prefix: only keys that begin with it.

        Raises:
            GatewayError: RUN_NOT_FOUND, …
        """
        request = metrics_pb.ListSeriesRequest(
            run_id=run_id, key_prefix=prefix, page_size=_PAGE_SIZE
        )
        found: list[SeriesInfo] = []
        while True:
            page = self._call(self._metrics.ListSeries, request)
            found += map(_series_info, page.series)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def read(
        self,
        run_id: str,
        keys: Sequence[str] = (),
        *,
        ranks: Sequence[int] = (),
        aggregate: Aggregation | None = None,
        first_step: int | None = None,
        last_step: int | None = None,
        policy: StepPolicy | None = None,
        max_points: int = 0,
        include_hidden: bool = False,
    ) -> Columns:
        """Read points as ordered columns, all from one snapshot.

        Args:
            run_id: the run.
            keys: the keys to read, or one key; none: all.
            ranks: the ranks to read; none: all.
            aggregate: make one series of the ranks of each key, step by step.
            first_step: the least step, inclusive.
            last_step: the greatest, inclusive.
            policy: which of several points at one step; None: the run's policy.
            max_points: the most points of each series, down-sampled by M4 (ends
                and extremes survive); 0: all.
            include_hidden: also points that a later attempt computed anew;
                attempts then come apart.

        Returns:
            Columns; series without points are absent.

        Raises:
            GatewayError: RUN_NOT_FOUND, FIELD_INVALID, …
        """
        request = metrics_pb.ReadMetricsRequest(
            run_id=run_id,
            keys=[keys] if isinstance(keys, str) else keys,
            ranks=ranks,
            rank_aggregation=_aggregation(aggregate),
            first_step=first_step,
            last_step=last_step,
            step_policy=_policy(policy),
            max_points=max_points,
            include_hidden=include_hidden,
        )

        def read() -> Columns:
            messages = (message.columns for message in self._stream(request))
            return Columns(join(messages))

        return retried(read, patience_s=self._patience_s)

    def follow(
        self,
        run_id: str,
        keys: Sequence[str] = (),
        *,
        ranks: Sequence[int] = (),
        first_step: int | None = None,
        last_step: int | None = None,
        policy: StepPolicy | None = None,
        include_hidden: bool = False,
    ) -> Iterator[Update]:
        """Yield what is there, then new points as they are committed, without end.

        Each point comes once in a generation. Attempts come apart, and step
        policies apply to what is there at the beginning only; see `read` for the
        arguments. Stop by leaving the loop.

        Raises:
            GatewayError: the run does not exist, or the gateway was away for longer
                than the client's patience.
        """
        request = metrics_pb.ReadMetricsRequest(
            run_id=run_id,
            keys=[keys] if isinstance(keys, str) else keys,
            ranks=ranks,
            first_step=first_step,
            last_step=last_step,
            step_policy=_policy(policy),
            include_hidden=include_hidden,
            follow=True,
        )
        generation = 0
        while True:

            def begin() -> tuple[Iterator[metrics_pb.ReadMetricsResponse], Any]:
                messages = self._stream(request)
                return messages, next(messages)

            messages, message = retried(begin, patience_s=self._patience_s)
            generation += 1
            try:
                while message is not None:
                    columns = from_message(message.columns) if message.HasField("columns") else None
                    yield Update(columns=columns, generation=generation)
                    message = next(messages, None)
            except GatewayError as error:
                if not error.retry:
                    raise
            finally:
                messages.close()  # type: ignore[attr-defined] # it is a generator

    def _stream(
        self, request: metrics_pb.ReadMetricsRequest
    ) -> Iterator[metrics_pb.ReadMetricsResponse]:
        call = self._metrics.ReadMetrics(request, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise gateway_error(error) from error
        finally:
            call.cancel()

    def _call(self, method: Callable[..., _Response], request: object) -> _Response:
        def call() -> _Response:
            try:
                return method(request, metadata=self._metadata, timeout=_CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                raise gateway_error(error) from error

        return retried(call, patience_s=self._patience_s)


def _aggregation(name: Aggregation | None) -> metrics_pb.RankAggregation.ValueType:
    suffix = "UNSPECIFIED" if name is None else name.upper()
    return metrics_pb.RankAggregation.Value(f"RANK_AGGREGATION_{suffix}")


def _policy(name: StepPolicy | None) -> runs_pb.StepPolicy.ValueType:
    suffix = "UNSPECIFIED" if name is None else name.upper()
    return runs_pb.StepPolicy.Value(f"STEP_POLICY_{suffix}")


def _run_info(run: runs_pb.Run) -> RunInfo:
    return RunInfo(
        run_id=run.run_id,
        experiment=run.experiment,
        name=run.name,
        state=runs_pb.RunState.Name(run.state).removeprefix("RUN_STATE_"),
        step_policy=runs_pb.StepPolicy.Name(run.step_policy)  # type: ignore[arg-type] # by proto
        .removeprefix("STEP_POLICY_")
        .lower(),
        created_at=_time(run.create_time),
        ended_at=_time(run.end_time) if run.HasField("end_time") else None,
        heartbeat_at=_time(run.heartbeat_time) if run.HasField("heartbeat_time") else None,
        attempts=tuple(
            AttemptInfo(
                attempt=attempt.attempt,
                resume_step=attempt.resume_step if attempt.HasField("resume_step") else None,
                started_at=_time(attempt.start_time),
            )
            for attempt in run.attempts
        ),
    )


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)


def _series_info(series: metrics_pb.Series) -> SeriesInfo:
    return SeriesInfo(
        key=series.key,
        rank=series.rank,
        point_count=series.point_count,
        last_step=series.last_step,
        last_time=np.datetime64(series.last_time_unix_us, "us"),
        last_value=series.last_value,
        min_value=series.min_value,
        max_value=series.max_value,
    )
