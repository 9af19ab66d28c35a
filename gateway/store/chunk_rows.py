"""Decodes chunk rows from PostgreSQL's binary COPY format into columns of points.

Called by the reading modules only. A query of chunk rows selects, in this order:
shape, position, rank, attempt (int4), first_step, last_step, first_time (int8),
point_values, time_offsets, step_offsets (bytea, packed big-endian); where shape = 2 x points
+ (0 if step_offsets is null, else 1), and position says to which group of the read a
chunk belongs.

No per-point Python: rows of one shape are decoded together by numpy, whatever
their order in the stream.

Layout (https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"):
a row is an int16 number of fields, then for each an int32 length and the bytes. All
big-endian.
"""

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import asyncpg
import numpy as np
from numpy.typing import NDArray

from gateway.domain.policies import Points

_PAGE_BYTES: Final = 2 * 1024 * 1024
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
_HEADER_BYTES: Final = len(_SIGNATURE) + 8
_SHAPE: Final = struct.Struct(">i")
_SHAPE_OFFSET: Final = 2 + 4
_FIXED_BYTES: Final = 2 + 4 * (4 + 4) + 3 * (4 + 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Some chunks, m of them, and their points, n in all, in the order of the stream.

    Attributes:
        position: int32[m].
        first_step: int64[m].
        attempt: int32[m].
        starts: intp[m + 1], where each chunk's points begin, then n.
        points: of all chunks, end to end.
    """

    position: NDArray[np.int32]
    first_step: NDArray[np.int64]
    attempt: NDArray[np.int32]
    starts: NDArray[np.intp]
    points: Points

    def __len__(self) -> int:
        return len(self.position)


class ChunkDecoder:
    """Takes the bytes of one COPY as they come; gives the chunks that are whole."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._begun = False
        self.pending_bytes = 0

    def push(self, piece: bytes) -> None:
        """Take some bytes."""
        self._pieces.append(piece)
        self.pending_bytes += len(piece)

    def take(self) -> Chunks | None:
        """Return the whole chunks received since the last take; None when there are none.

        Raises:
            ValueError: the bytes are not COPY's format.
        """
        data = b"".join(self._pieces)
        position = 0
        if not self._begun:
            if len(data) < _HEADER_BYTES:
                self._pieces = [data]
                return None
            if not data.startswith(_SIGNATURE):
                raise ValueError("not a binary COPY stream")
            self._begun, position = True, _HEADER_BYTES
        shapes: list[int] = []
        offsets: list[int] = []
        end = len(data) - _FIXED_BYTES  # a trailer of 2 bytes is no row either
        unpack = _SHAPE.unpack_from
        while position <= end:
            shape: int = unpack(data, position + _SHAPE_OFFSET)[0]
            following = position + _row_bytes(shape)
            if following > len(data):
                break
            shapes.append(shape)
            offsets.append(position)
            position = following
        rest = data[position:]
        self._pieces = [rest] if rest else []
        self.pending_bytes = len(rest)
        return _decode(data, np.array(shapes), np.array(offsets)) if shapes else None


@lru_cache(maxsize=1024)
def _row_bytes(shape: int) -> int:
    return _row_dtype(shape).itemsize


@lru_cache(maxsize=1024)
def _row_dtype(shape: int) -> np.dtype[np.void]:
    """Return the layout of a row with `shape >> 1` points, with step offsets if `shape & 1`."""
    count, has_steps = shape >> 1, shape & 1
    fields: list[tuple[object, ...]] = [("fields", ">i2")]
    for name in ("shape", "position", "rank", "attempt"):
        fields += [(f"{name}_length", ">i4"), (name, ">i4")]
    for name in ("first_step", "last_step", "first_time"):
        fields += [(f"{name}_length", ">i4"), (name, ">i8")]
    fields += [("point_values_length", ">i4"), ("point_values", ">f8", (count,))]
    fields += [("times_length", ">i4"), ("times", ">i4", (count,))]
    fields += [("steps_length", ">i4")]
    if has_steps:
        fields += [("steps", ">i4", (count,))]
    return np.dtype(fields)


def _decode(data: bytes, shapes: NDArray[np.int64], offsets: NDArray[np.int64]) -> Chunks:
    counts = shapes >> 1
    starts = np.zeros(len(shapes) + 1, np.intp)
    np.cumsum(counts, out=starts[1:])
    total = int(starts[-1])
    step = np.empty(total, np.int64)
    time_us = np.empty(total, np.int64)
    value = np.empty(total, np.float64)
    scalars = {name: np.empty(len(shapes), np.int32) for name in ("position", "rank", "attempt")}
    first_step = np.empty(len(shapes), np.int64)
    for shape in np.unique(shapes).tolist():
        chosen = np.flatnonzero(shapes == shape)
        rows = _gather(data, _row_dtype(shape), offsets[chosen])
        for name, column in scalars.items():
            column[chosen] = rows[name]
        first = rows["first_step"].astype(np.int64)
        first_step[chosen] = first
        count = shape >> 1
        if shape & 1:
            offset = rows["steps"]
        else:
            stride = (rows["last_step"] - first) // max(count - 1, 1)
            offset = stride[:, None] * np.arange(count)
        columns = (step, time_us, value)
        if len(chosen) == len(shapes):  # as most pages are: no scattering, no copies between
            of_chunk = [column.reshape(-1, count) for column in columns]
            np.add(first[:, None], offset, out=of_chunk[0])
            np.add(rows["first_time"][:, None], rows["times"], out=of_chunk[1])
            of_chunk[2][...] = rows["point_values"]
        else:
            where = starts[chosen][:, None] + np.arange(count)
            step[where] = first[:, None] + offset
            time_us[where] = rows["first_time"][:, None] + rows["times"]
            value[where] = rows["point_values"]
    return Chunks(
        position=scalars["position"],
        first_step=first_step,
        attempt=scalars["attempt"],
        starts=starts,
        points=Points(
            step=step,
            time_us=time_us,
            value=value,
            attempt=np.repeat(scalars["attempt"], counts),
            rank=np.repeat(scalars["rank"], counts),
        ),
    )


def _gather(data: bytes, dtype: np.dtype[np.void], offsets: NDArray[np.int64]) -> NDArray[np.void]:
    """Return the rows at the given offsets: a view when they lie end to end, else a copy."""
    size = dtype.itemsize
    first = int(offsets[0])
    if int(offsets[-1]) - first == (len(offsets) - 1) * size:
        return np.frombuffer(data, dtype, count=len(offsets), offset=first)
    # A window of a row's size at every byte; taking some copies each in one piece.
    windows = np.ndarray((len(data) - size + 1,), np.dtype(f"V{size}"), buffer=data, strides=(1,))
    taken: NDArray[np.void] = windows[offsets].view(dtype)
    return taken


OUTLINE: Final = np.dtype(
    [("fields", ">i2")]
    + [
        item
        for name, kind, size in (
            ("first_step", ">i8", 8),
            ("last_step", ">i8", 8),
            ("min_value", ">f8", 8),
            ("max_value", ">f8", 8),
            ("attempt", ">i4", 4),
            ("point_count", ">i4", 4),
            ("regular", ">i4", 4),
        )
        for item in ((f"{name}_length", ">i4"), (name, kind))
    ]
)
"""A row of the query `chunk_outlines`."""


async def copy_chunks(
    connection: asyncpg.Connection,
    query: str,
    *arguments: object,
    take: Callable[[Chunks, bool], Awaitable[None]],
) -> None:
    """Run a query of chunk rows and hand its chunks on, a page at a time.

    `take` gets a page, and whether it is known to be the last.
    While `take` works, PostgreSQL waits: nothing piles up. An error of `take`
    ends the query and is raised here.
    """
    decoder = ChunkDecoder()

    async def receive(piece: bytes) -> None:
        decoder.push(piece)
        if decoder.pending_bytes >= _PAGE_BYTES:
            chunks = decoder.take()
            if chunks is not None:
                await take(chunks, False)

    query = query.rstrip(";")  # it becomes a part of COPY (…)
    await connection.copy_from_query(query, *arguments, output=receive, format="binary")
    chunks = decoder.take()
    if chunks is not None:
        await take(chunks, True)


async def copy_outlines(
    connection: asyncpg.Connection, query: str, *arguments: object
) -> NDArray[np.void]:
    """Return the rows of the query `chunk_outlines`: OUTLINE[m]."""
    pieces: list[bytes] = []

    async def receive(piece: bytes) -> None:
        pieces.append(piece)

    query = query.rstrip(";")  # it becomes a part of COPY (…)
    await connection.copy_from_query(query, *arguments, output=receive, format="binary")
    data = b"".join(pieces)
    count = (len(data) - _HEADER_BYTES - 2) // OUTLINE.itemsize  # a trailer of 2 bytes
    return np.frombuffer(data, OUTLINE, count=count, offset=_HEADER_BYTES)
