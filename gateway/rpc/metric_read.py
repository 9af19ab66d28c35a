"""The read half of MetricService: ReadMetrics and ListSeries.

Thin: checks the request, calls the store, builds messages. The messages of a
read are assembled by hand, as bytes: protobuf takes a numpy array element by
element (40 µs for 1,000), while the packed columns of the wire format are the
very bytes of the array. A test holds the bytes equal to the generated class's.

A read runs in a task of its own and hands messages over through a queue of
four (3 MiB), so that the lifetime of its snapshot does not depend on when gRPC
asks for the next message, or whether it ever does. Nor does its end: a read that
fails, or whose reader takes no message for 30 s, gives up the queue and its call.
What gRPC has taken of it, one message in two copies (1.5 MiB), stays until the
reader reads on or goes; `open_max` bounds how many such there are (384 MiB). A
following read may pause for longer; `followers_max` bounds those.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import numpy as np
from headrace.v1 import metric_service_pb2 as pb
from headrace.wire_format import varint
from numpy.typing import NDArray

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.identity import current_identity
from gateway.domain.limits import (
    KEY_CHARACTERS_MAX,
    READ_KEYS_MAX,
    READ_POINTS_PER_MESSAGE_MAX,
    STEP_MAX,
    STEP_MIN,
)
from gateway.domain.policies import RankAggregation, StepPolicy
from gateway.domain.reads import ReadQuery, SeriesPart
from gateway.rpc import fields
from gateway.rpc.open_call import OpenCall, current_call
from gateway.store.reading import MetricReading
from gateway.store.summaries import SeriesQuery, SeriesSummary

_QUEUE_MESSAGES: Final = 4
_PATIENCE_S: Final = 30.0
_PAGE_SIZE: Final = 1_000
_PAGE_SIZE_MAX: Final = 10_000
_MAX_POINTS_MIN: Final = 4
_CAUGHT_UP: Final = pb.ReadMetricsResponse(caught_up=pb.CaughtUp()).SerializeToString()
_TOKEN_DIGEST_BYTES: Final = 8
_RANK: Final = struct.Struct("<i")


class MetricReadService:
    """ReadMetrics and ListSeries."""

    def __init__(self, reading: MetricReading, *, open_max: int = 256) -> None:
        """Prepare; `open_max` bounds reads that do not follow, until gRPC lets go of them."""
        self._reading = reading
        self._open_max = open_max
        self._open = 0

    async def read_metrics(
        self, request: pb.ReadMetricsRequest, _context: object
    ) -> AsyncIterator[bytes]:
        """Yield serialized ReadMetricsResponse messages; see the contract.

        Raises:
            HeadraceError: see `read_query` and `MetricReading.read`; OVERLOADED when
                too many are open, or the reader takes nothing.
        """
        query = read_query(request, workspace_id=current_identity().workspace_id)
        call = current_call()
        if call is not None and not query.follow:
            self._admit(call)
        messages: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUE_MESSAGES)

        async def emit(part: SeriesPart | None) -> None:
            if part is None:
                await messages.put(_CAUGHT_UP)
                return
            for first in range(0, len(part.points), READ_POINTS_PER_MESSAGE_MAX):
                await messages.put(columns_message(part, first))

        async def produce() -> None:
            try:
                await self._reading.read(query, emit)
            except Exception as error:
                while not messages.empty():
                    messages.get_nowait()
                messages.put_nowait(None)
                if writing and call is not None:
                    call.fail(error)
                raise
            await messages.put(None)

        writing = False
        producer = asyncio.create_task(produce())
        try:
            while (message := await messages.get()) is not None:
                writing = True
                with _patience(None if query.follow else call):
                    yield message
                writing = False
            await producer
        finally:
            producer.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await producer

    def _admit(self, call: OpenCall) -> None:
        if self._open >= self._open_max:
            raise HeadraceError(
                Reason.OVERLOADED,
                f"{self._open} reads are open at this gateway, as many as may be",
                limit=self._open_max,
                retry_after_ms=1_000,
            )
        self._open += 1
        call.at_end(self._leave)

    def _leave(self) -> None:
        self._open -= 1

    async def list_series(
        self, request: pb.ListSeriesRequest, _context: object
    ) -> pb.ListSeriesResponse:
        """Return a page of series; see the contract.

        Raises:
            HeadraceError: see `series_query` and `MetricReading.list_series`.
        """
        query = series_query(request, workspace_id=current_identity().workspace_id)
        page = await self._reading.list_series(query)
        token = "" if page.next_after is None else page_token(query, page.next_after)
        return pb.ListSeriesResponse(
            series=[_series(summary) for summary in page.series], next_page_token=token
        )


@contextlib.contextmanager
def _patience(call: OpenCall | None) -> Iterator[None]:
    """End a call whose reader does not take a message in time."""
    if call is None:
        yield
        return
    error = HeadraceError(
        Reason.OVERLOADED,
        f"the reader took no message for {_PATIENCE_S:.0f} s; read again and take them sooner",
        limit=_PATIENCE_S,
    )
    timer = asyncio.get_running_loop().call_later(_PATIENCE_S, call.fail, error)
    try:
        yield
    finally:
        timer.cancel()


def read_query(request: pb.ReadMetricsRequest, *, workspace_id: int) -> ReadQuery:
    """Return what a request asks for.

    Raises:
        HeadraceError: FIELD_REQUIRED, FIELD_INVALID or LIMIT_EXCEEDED, naming
            field, value and limit.
    """
    run_id = fields.run_id(request.run_id)
    if len(request.keys) > READ_KEYS_MAX:
        raise HeadraceError(
            Reason.LIMIT_EXCEEDED,
            f"{len(request.keys)} keys, more than {READ_KEYS_MAX}; name fewer, or none for all",
            field="keys",
            value=len(request.keys),
            limit=READ_KEYS_MAX,
        )
    for key in request.keys:
        _check_key(key, field="keys")
        if not key:
            raise HeadraceError(Reason.FIELD_INVALID, "a key is empty", field="keys", value="")
    for rank in request.ranks:
        if rank < 0:
            raise HeadraceError(
                Reason.FIELD_INVALID, "a rank is negative", field="ranks", value=rank, limit=0
            )
    aggregation = RankAggregation(
        fields.choice(
            request.rank_aggregation, field="rank_aggregation", default=0, allowed=range(1, 5)
        )
    )
    policy = fields.choice(request.step_policy, field="step_policy", default=0, allowed=range(1, 4))
    if 0 < request.max_points < _MAX_POINTS_MIN:
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"max_points must be 0 (all) or at least {_MAX_POINTS_MIN}: M4 keeps up to four a span",
            field="max_points",
            value=request.max_points,
            limit=_MAX_POINTS_MIN,
        )
    if request.follow and request.max_points:
        raise _conflict("max_points", request.max_points, "follow")
    if request.follow and aggregation:
        raise _conflict("rank_aggregation", aggregation.name, "follow")
    if aggregation and policy == StepPolicy.ALL:
        raise _conflict("rank_aggregation", aggregation.name, "step_policy ALL")
    return ReadQuery(
        workspace_id=workspace_id,
        run_id=run_id,
        keys=tuple(request.keys),
        ranks=tuple(request.ranks),
        aggregation=aggregation,
        # Beyond the bounds there are no points, and within them no sum overflows.
        first_step=max(request.first_step, STEP_MIN)
        if request.HasField("first_step")
        else STEP_MIN,
        last_step=min(request.last_step, STEP_MAX) if request.HasField("last_step") else STEP_MAX,
        step_policy=StepPolicy(policy) if policy else None,
        max_points=request.max_points,
        include_hidden=request.include_hidden,
        follow=request.follow,
    )


def series_query(request: pb.ListSeriesRequest, *, workspace_id: int) -> SeriesQuery:
    """Return what a request asks for.

    Raises:
        HeadraceError: FIELD_REQUIRED, FIELD_INVALID or PAGE_TOKEN_INVALID.
    """
    run_id = fields.run_id(request.run_id)
    _check_key(request.key_prefix, field="key_prefix")
    query = SeriesQuery(
        workspace_id=workspace_id,
        run_id=run_id,
        key_prefix=request.key_prefix,
        limit=fields.page_size(request.page_size, default=_PAGE_SIZE, maximum=_PAGE_SIZE_MAX),
    )
    if not request.page_token:
        return query
    return SeriesQuery(
        workspace_id=workspace_id,
        run_id=run_id,
        key_prefix=query.key_prefix,
        limit=query.limit,
        after=_position(query, request.page_token),
    )


def _check_key(key: str, *, field: str) -> None:
    if len(key) > KEY_CHARACTERS_MAX:
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"a key has at most {KEY_CHARACTERS_MAX} characters, not {len(key)}",
            field=field,
            value=key,
            limit=KEY_CHARACTERS_MAX,
        )
    if "\0" in key:
        raise HeadraceError(
            Reason.FIELD_INVALID, "a key holds no NUL", field=field, value=repr(key)
        )


def _conflict(field: str, value: object, other: str) -> HeadraceError:
    return HeadraceError(
        Reason.FIELD_INVALID, f"{field} does not go with {other}", field=field, value=value
    )


def page_token(query: SeriesQuery, position: tuple[str, int]) -> str:
    """Return the opaque token of the page behind a (key, rank), bound to run and prefix."""
    key, rank = position
    body = _RANK.pack(rank) + key.encode()
    return base64.urlsafe_b64encode(_token_digest(query, body) + body).decode()


def _position(query: SeriesQuery, token: str) -> tuple[str, int]:
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        digest, body = data[:_TOKEN_DIGEST_BYTES], data[_TOKEN_DIGEST_BYTES:]
        if digest == _token_digest(query, body):
            return body[_RANK.size :].decode(), int(_RANK.unpack_from(body)[0])
    except (ValueError, binascii.Error, struct.error):
        pass
    raise HeadraceError(
        Reason.PAGE_TOKEN_INVALID,
        "page_token was not issued for this run_id and key_prefix",
        field="page_token",
        value=token,
    )


def _token_digest(query: SeriesQuery, body: bytes) -> bytes:
    # Binds, does not authenticate: a forged token shows nothing that an honest one does not.
    digest = hashlib.blake2b(digest_size=_TOKEN_DIGEST_BYTES, person=b"headrace-series")
    for piece in (query.run_id.bytes, query.key_prefix.encode(), body):
        digest.update(len(piece).to_bytes(4, "little") + piece)
    return digest.digest()


def _series(summary: SeriesSummary) -> pb.Series:
    return pb.Series(
        key=summary.key,
        rank=summary.rank,
        point_count=summary.point_count,
        last_step=summary.last_step,
        last_time_unix_us=summary.last_time_us,
        last_value=summary.last_value,
        min_value=summary.min_value,
        max_value=summary.max_value,
    )


def columns_message(part: SeriesPart, first: int) -> bytes:
    """Return the serialized message with at most 32,768 points of a part, from point `first`."""
    chosen = slice(first, first + READ_POINTS_PER_MESSAGE_MAX)
    key = part.key.encode()
    pieces: list[Any] = [b"\x0a", varint(len(key)), key]
    if part.rank:
        pieces += (b"\x10", varint(part.rank % 2**64))  # int32 is sign-extended to 64 bits
    for tag, column in (
        (b"\x1a", part.points.step),
        (b"\x22", part.points.time_us),
        (b"\x2a", part.points.value),
    ):
        data = _little_endian(column[chosen])
        pieces += (tag, varint(data.nbytes), data)
    if part.attempt:
        pieces += (b"\x30", varint(part.attempt))
    length = sum(map(_bytes_in, pieces))
    return b"".join((b"\x0a", varint(length), *pieces))


def _bytes_in(piece: Any) -> int:
    return piece.nbytes if isinstance(piece, np.ndarray) else len(piece)


def _little_endian(column: NDArray[Any]) -> NDArray[Any]:
    column = np.ascontiguousarray(column)
    return column if sys.byteorder == "little" else column.byteswap()
