"""Reads rows of metric_chunks in binary COPY format, written against PostgreSQL's
documentation and not against the encoder: a second opinion."""

import struct
from dataclasses import dataclass
from uuid import UUID

_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRow:
    """One row, decoded to Python values."""

    run_id: UUID
    series_id: int
    writer_no: int
    last_sequence: int
    first_step: int
    last_step: int
    first_time: int
    min_value: float
    max_value: float
    attempt: int
    step_offsets: list[int] | None
    time_offsets: list[int]
    values: list[float]

    def points(self) -> list[tuple[int, int, float]]:
        """Return (step, time, value) of each point."""
        count = len(self.values)
        if self.step_offsets is None:
            stride = (self.last_step - self.first_step) // (count - 1) if count > 1 else 0
            steps = [self.first_step + stride * place for place in range(count)]
        else:
            steps = [self.first_step + offset for offset in self.step_offsets]
        times = [self.first_time + offset for offset in self.time_offsets]
        return list(zip(steps, times, self.values, strict=True))


def rows(stream: bytes) -> list[ChunkRow]:
    """Decode a whole COPY stream."""
    assert stream.startswith(_HEADER)
    assert stream.endswith(b"\xff\xff")
    place, end = len(_HEADER), len(stream) - 2
    found: list[ChunkRow] = []
    while place < end:
        (count,) = struct.unpack_from(">h", stream, place)
        assert count == 13
        place += 2
        fields: list[bytes | None] = []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", stream, place)
            place += 4
            fields.append(None if length < 0 else stream[place : place + length])
            place += max(length, 0)
        found.append(_row(fields))
    assert place == end
    return found


def _row(fields: list[bytes | None]) -> ChunkRow:
    run_id, series_id, writer_no, last_sequence, first_step, last_step, first_time = fields[:7]
    minimum, maximum, attempt, step_offsets, time_offsets, values = fields[7:]
    assert run_id is not None
    assert time_offsets is not None
    assert values is not None
    return ChunkRow(
        run_id=UUID(bytes=run_id),
        series_id=_one(">q", series_id),
        writer_no=_one(">q", writer_no),
        last_sequence=_one(">q", last_sequence),
        first_step=_one(">q", first_step),
        last_step=_one(">q", last_step),
        first_time=_one(">q", first_time),
        min_value=_one(">d", minimum),
        max_value=_one(">d", maximum),
        attempt=_one(">i", attempt),
        step_offsets=None if step_offsets is None else _all(">i", step_offsets),
        time_offsets=_all(">i", time_offsets),
        values=_all(">d", values),
    )


def _one(form: str, field: bytes | None):  # type: ignore[no-untyped-def]
    assert field is not None
    return struct.unpack(form, field)[0]


def _all(form: str, field: bytes):  # type: ignore[no-untyped-def]
    return [item for (item,) in struct.iter_unpack(form, field)]
