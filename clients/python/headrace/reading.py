"""Reading the points of runs: part of `headrace.Client`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import grpc
import numpy as np

from headrace.calls import gateway_error, retried
from headrace.columns import Columns, SeriesColumns, from_message, join
from headrace.connection import Connection
from headrace.errors import GatewayError
from headrace.run_info import StepPolicy
from headrace.v1 import metric_service_pb2 as metrics_pb
from headrace.v1 import run_service_pb2 as runs_pb

Aggregation = Literal["mean", "min", "max", "sum"]

_PAGE_SIZE: Final = 10_000


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


class ReadingMethods(Connection):
    """The methods that read points."""

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
            page = self._call(self._metric_service.ListSeries, request)
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
        call = self._metric_service.ReadMetrics(request, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise gateway_error(error) from error
        finally:
            call.cancel()


def _aggregation(name: Aggregation | None) -> metrics_pb.RankAggregation.ValueType:
    suffix = "UNSPECIFIED" if name is None else name.upper()
    return metrics_pb.RankAggregation.Value(f"RANK_AGGREGATION_{suffix}")


def _policy(name: StepPolicy | None) -> runs_pb.StepPolicy.ValueType:
    suffix = "UNSPECIFIED" if name is None else name.upper()
    return runs_pb.StepPolicy.Value(f"STEP_POLICY_{suffix}")


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
