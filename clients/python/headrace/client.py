"""Reads runs back: their state, their series with summaries, their points as numpy columns.

For notebooks, reports and scripts, not for training processes: it imports gRPC
and waits for the gateway, at most a minute a call. A failure is a ReadError that
names the gateway's reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from headrace.channel import call_metadata, open_blocking_channel
from headrace.errors import HeadraceError
from headrace.failures import failure_of
from headrace.settings import load_settings
from headrace.v1 import (
    metric_service_pb2,
    metric_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
)

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Aggregation = Literal["mean", "min", "max", "sum"]
Policy = Literal["last", "first", "all"]

CALL_TIMEOUT_S: Final = 60.0
PAGE_SIZE: Final = 10_000

_AGGREGATIONS: Final = {"mean": 1, "min": 2, "max": 3, "sum": 4}
_POLICIES: Final = {"last": 1, "first": 2, "all": 3}


class ReadError(HeadraceError):
    """A read failed; `reason` names one of error_reason.proto, or the gRPC status."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptInfo:
    """One (re)start of a run's job; `resume_step` is None where it hides nothing."""

    attempt: int
    resume_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run as the gateway knows it.

    Attributes:
        state: `running`, `finished`, `failed`, `killed` or `lost`.
        created_at, ended_at: UTC; `ended_at` is None while it runs.
        attempts: ascending.
    """

    run_id: str
    experiment: str
    name: str
    state: str
    created_at: datetime
    ended_at: datetime | None
    attempts: tuple[AttemptInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesInfo:
    """A series and the summary of its visible points; see Series in metric_service.proto."""

    key: str
    rank: int
    point_count: int
    last_step: int
    last_time_unix_us: int
    last_value: float
    min_value: float
    max_value: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """The points of one series, columns of one length.

    Attributes:
        rank: -1 when the ranks were aggregated.
        attempt: of all points when hidden ones or new ones were asked for, else 0.
        step: int64.
        time_unix_us: int64, microseconds since 1970-01-01 UTC.
        value: float64.
    """

    key: str
    rank: int
    attempt: int
    step: NDArray[np.int64]
    time_unix_us: NDArray[np.int64]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.step)

    @property
    def time(self) -> NDArray[np.datetime64]:
        """The times as numpy's datetime64[us], UTC."""
        return self.time_unix_us.view("datetime64[us]")

    def to_pandas(self) -> "pd.DataFrame":
        """Return a data frame with the columns step, time and value; needs pandas."""
        import pandas as pd  # noqa: PLC0415 - an optional dependency

        return pd.DataFrame({"step": self.step, "time": self.time, "value": self.value})

    def to_polars(self) -> "pl.DataFrame":
        """Return the same as a polars data frame; needs polars."""
        import polars as pl  # noqa: PLC0415 - an optional dependency

        return pl.DataFrame({"step": self.step, "time": self.time, "value": self.value})


class Client:
    """A connection to a gateway for reading. Close it, or use it in a `with` block.

    Safe to use from several threads.
    """

    def __init__(
        self, address: str | None = None, *, token: str | None = None, tls_ca: str | None = None
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            address: `host:port`, or `https://host:port`; default HEADRACE_ADDRESS.
            token: bearer token; default HEADRACE_TOKEN.
            tls_ca: PEM file of authorities; default HEADRACE_TLS_CA.

        Raises:
            ConfigurationError: a bad argument or variable.
        """
        settings = load_settings(address=address, token=token, tls_ca=tls_ca)
        self._channel = open_blocking_channel(settings)
        self._metadata = tuple(call_metadata(settings))
        self._runs = run_service_pb2_grpc.RunServiceStub(self._channel)
        self._metrics = metric_service_pb2_grpc.MetricServiceStub(self._channel)

    def run(self, run_id: str) -> RunInfo:
        """Return a run.

        Raises:
            ReadError: RUN_NOT_FOUND, or the gateway cannot be asked.
        """
        request = run_service_pb2.GetRunRequest(run_id=run_id)
        found = self._call(self._runs.GetRun, request).run
        return RunInfo(
            run_id=found.run_id,
            experiment=found.experiment,
            name=found.name,
            state=run_service_pb2.RunState.Name(found.state).removeprefix("RUN_STATE_").lower(),
            created_at=found.create_time.ToDatetime(UTC),
            ended_at=found.end_time.ToDatetime(UTC) if found.HasField("end_time") else None,
            attempts=tuple(
                AttemptInfo(
                    attempt=each.attempt,
                    resume_step=each.resume_step if each.HasField("resume_step") else None,
                )
                for each in found.attempts
            ),
        )

    def series(self, run_id: str, *, key_prefix: str = "") -> list[SeriesInfo]:
        """Return the series of a run, ordered by (key, rank).

        Raises:
            ReadError: RUN_NOT_FOUND, or the gateway cannot be asked.
        """
        found: list[SeriesInfo] = []
        page_token = ""
        while True:
            request = metric_service_pb2.ListSeriesRequest(
                run_id=run_id, key_prefix=key_prefix, page_size=PAGE_SIZE, page_token=page_token
            )
            page = self._call(self._metrics.ListSeries, request)
            found += [
                SeriesInfo(**{name: getattr(each, name) for name in SeriesInfo.__slots__})
                for each in page.series
            ]
            page_token = page.next_page_token
            if not page_token:
                return found

    def read(
        self,
        run_id: str,
        keys: Sequence[str] = (),
        *,
        ranks: Sequence[int] = (),
        aggregate: Aggregation | None = None,
        first_step: int | None = None,
        last_step: int | None = None,
        policy: Policy | None = None,
        max_points: int = 0,
        include_hidden: bool = False,
    ) -> list[Columns]:
        """Return points, ascending in step; series ordered by (key, rank), from one snapshot.

        Args:
            keys: none means all.
            ranks: none means all.
            aggregate: makes one series of the ranks of each key.
            first_step, last_step: inclusive.
            policy: which of several points at one step; None is the run's.
            max_points: the most points of each series, chosen by M4 so that ends
                and extremes survive; 0 means all.
            include_hidden: whether points that a later attempt hides are returned too.

        Raises:
            ReadError: RUN_NOT_FOUND, a refused argument, or the gateway cannot be asked.
        """
        request = metric_service_pb2.ReadMetricsRequest(
            run_id=run_id,
            keys=keys,
            ranks=ranks,
            rank_aggregation=_AGGREGATIONS[aggregate] if aggregate else 0,  # type: ignore[arg-type]
            first_step=first_step,
            last_step=last_step,
            step_policy=_POLICIES[policy] if policy else 0,  # type: ignore[arg-type]
            max_points=max_points,
            include_hidden=include_hidden,
        )
        parts: dict[tuple[str, int, int], list[Columns]] = {}
        for columns in self._stream(request, timeout_s=CALL_TIMEOUT_S):
            if columns is not None:
                parts.setdefault((columns.key, columns.rank, columns.attempt), []).append(columns)
        return [_joined(pieces) for pieces in parts.values()]

    def follow(
        self, run_id: str, keys: Sequence[str] = (), *, ranks: Sequence[int] = ()
    ) -> Iterator[Columns | None]:
        """Yield what is stored, then None once, then points as they are committed.

        Each point comes exactly once; policies and attempts are left to the
        caller. Ends only by an error, or when the caller stops iterating.

        Raises:
            ReadError: as in `read`.
        """
        request = metric_service_pb2.ReadMetricsRequest(
            run_id=run_id, keys=keys, ranks=ranks, follow=True
        )
        yield from self._stream(request, timeout_s=None)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(
                request, metadata=self._metadata, timeout=CALL_TIMEOUT_S, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise _read_error(error) from error

    def _stream(
        self, request: metric_service_pb2.ReadMetricsRequest, *, timeout_s: float | None
    ) -> Iterator[Columns | None]:
        call = self._metrics.ReadMetrics(
            request,
            metadata=self._metadata,
            timeout=timeout_s,
            # A follower has no deadline: it must not wait for ever for a wrong address.
            wait_for_ready=timeout_s is not None,
        )
        try:
            for message in call:
                if message.HasField("caught_up"):
                    yield None
                    continue
                columns = message.columns
                yield Columns(
                    key=columns.key,
                    rank=columns.rank,
                    attempt=columns.attempt,
                    step=np.array(columns.step, np.int64),
                    time_unix_us=np.array(columns.time_unix_us, np.int64),
                    value=np.array(columns.value, np.float64),
                )
        except grpc.RpcError as error:
            raise _read_error(error) from error
        finally:
            call.cancel()


def _joined(pieces: list[Columns]) -> Columns:
    if len(pieces) == 1:
        return pieces[0]
    return Columns(
        key=pieces[0].key,
        rank=pieces[0].rank,
        attempt=pieces[0].attempt,
        step=np.concatenate([piece.step for piece in pieces]),
        time_unix_us=np.concatenate([piece.time_unix_us for piece in pieces]),
        value=np.concatenate([piece.value for piece in pieces]),
    )


def _read_error(error: Any) -> ReadError:
    failure = failure_of(error)
    return ReadError(failure.text, reason=failure.reason or error.code().name)
