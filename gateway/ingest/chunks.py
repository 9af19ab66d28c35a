"""From the portions of a flush to chunk rows in PostgreSQL's binary COPY format.

Pure numpy; nothing here runs once per point in Python. The stages:

    gather    all batches into four flat columns; a *slot* says whose key a point is
    screen    reject what the contract forbids (rare; costs two reductions otherwise)
    sort      stable by slot, and by step, time, value only where a series is unordered
    cut       each series into pieces of at most CHUNK_POINTS_MAX points
    pack      pieces of equal length share one row template, filled by columns
    fold      count, last, min and max by series, for the writers' summaries

A slot is the portion's base plus the key index. Points come portion by portion, so the
stable sort works on blocks of few slots, where numpy's radix sort has one byte to look
at. The COPY format: PostgreSQL documentation, "COPY", section "Binary Format"; the
columns of points are bytea, packed big-endian.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gateway.domain.flush import CHUNK_COLUMNS
from gateway.domain.limits import CHUNK_POINTS_MAX, CHUNK_POINTS_MAX_IRREGULAR
from gateway.ingest.summary import Fold

Int64s = NDArray[np.int64]
Column = TypeVar("Column", Int64s, NDArray[np.float64])


_BYTE_VALUES: Final = 256
_OFFSET_MAX: Final = 2**31 - 1
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_COPY_TRAILER: Final = b"\xff\xff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Flat columns of equal length n.

    Attributes:
        slot: uint16 or uint32.
        step, time: int64. value: float64.
    """

    slot: NDArray[np.uint16] | NDArray[np.uint32]
    step: Int64s
    time: Int64s
    value: NDArray[np.float64]

    def only(self, keep: NDArray[np.bool_]) -> "Points":
        """Return the points where `keep` is true."""
        return Points(
            slot=self.slot[keep], step=self.step[keep], time=self.time[keep], value=self.value[keep]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotIdentity:
    """What the rows of a slot have in common, as columns indexed by slot.

    Attributes:
        portion: int32, the portion the slot belongs to.
        series_id: int64.
    """

    portion: NDArray[np.int32]
    series_id: Int64s


@dataclass(frozen=True, slots=True, kw_only=True)
class PortionIdentity:
    """What the rows of a portion have in common, as columns indexed by portion.

    Attributes:
        run_id: raw 16 bytes each, dtype V16.
        writer_no, last_sequence: int64. attempt: int32.
    """

    run_id: NDArray[np.void]
    writer_no: Int64s
    last_sequence: Int64s
    attempt: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """Points sorted by (slot, step, time, value).

    Attributes:
        starts: int64, where each series begins; counts: its points.
        slots: int64, the slot of each series.
        repeats: bool by point: its step equals the step before it in its series;
            None when there is none in the whole flush.
    """

    points: Points
    starts: Int64s
    counts: Int64s
    slots: Int64s
    repeats: NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Points that lie together and whose slots lie together."""

    slots: slice
    points: slice


def blocks(slot_counts: Sequence[int], point_counts: Sequence[int]) -> list[Block]:
    """Put neighbouring portions together while a byte can tell their slots apart.

    Args:
        slot_counts: of each portion.
        point_counts: of each portion, whose points follow those of the portion before.
    """
    found: list[Block] = []
    first_slot = first_point = slot = point = 0
    for slots, points in zip(slot_counts, point_counts, strict=True):
        if slot + slots - first_slot > _BYTE_VALUES and slot > first_slot:
            found.append(Block(slots=slice(first_slot, slot), points=slice(first_point, point)))
            first_slot, first_point = slot, point
        slot += slots
        point += points
    found.append(Block(slots=slice(first_slot, slot), points=slice(first_point, point)))
    return found


def sort(points: Points, within: Sequence[Block]) -> Sorted:
    """Sort points by series, and by (step, time, value) where that is needed.

    Args:
        points: in any order within each block.
        within: blocks that cover all points and all slots, ascending.
    """
    order = _stable_order(points.slot, within)
    slot, step = points.slot.take(order), points.step.take(order)
    time, value = points.time.take(order), points.value.take(order)
    starts = np.concatenate(([0], np.flatnonzero(slot[1:] != slot[:-1]) + 1))
    counts = np.diff(starts, append=len(slot))
    slots = slot[starts].astype(np.int64)

    repeats: NDArray[np.bool_] | None = None
    if len(step) > 1:
        falls = step[1:] <= step[:-1]
        falls[starts[1:] - 1] = False
        if falls.any():
            affected = np.zeros(within[-1].slots.stop, np.bool_)
            affected[slot[1:][falls]] = True
            places = np.flatnonzero(affected[slot])
            if len(places) == len(slot):
                order = _order_by_step(slot, step, time, value)
                step, time, value = step.take(order), time.take(order), value.take(order)
            else:
                some = places[
                    _order_by_step(slot[places], step[places], time[places], value[places])
                ]
                step[places], time[places], value[places] = step[some], time[some], value[some]
            repeats = np.zeros(len(step), np.bool_)
            repeats[1:] = step[1:] == step[:-1]
            repeats[starts] = False
    return Sorted(
        points=Points(slot=slot, step=step, time=time, value=value),
        starts=starts,
        counts=counts,
        slots=slots,
        repeats=repeats,
    )


def _stable_order(
    slot: NDArray[np.uint16] | NDArray[np.uint32], within: Sequence[Block]
) -> NDArray[np.intp]:
    order = np.empty(len(slot), np.intp)
    for block in within:
        part = slot[block.points] - slot.dtype.type(block.slots.start)
        slots = block.slots.stop - block.slots.start
        if slots <= _BYTE_VALUES:
            inner = np.argsort(part.astype(np.uint8), kind="stable")  # radix sort
        elif slots <= 65_536:
            inner = np.argsort(part.astype(np.uint16), kind="stable")
        else:  # numpy has none for 32 bits
            low = np.argsort((part & 0xFFFF).astype(np.uint16), kind="stable")
            high = np.argsort((part >> 16).astype(np.uint16)[low], kind="stable")
            inner = low[high]
        np.add(inner, block.points.start, out=order[block.points])
    return order


def _order_by_step(
    slot: NDArray[np.uint16] | NDArray[np.uint32],
    step: Int64s,
    time: Int64s,
    value: NDArray[np.float64],
) -> NDArray[np.intp]:
    """Return the order by (slot, step, time, value) of points that ascend in slot."""
    series = np.zeros(len(slot), np.int64)
    np.cumsum(slot[1:] != slot[:-1], out=series[1:])
    least = int(step.min())
    span = int(step.max()) - least + 1
    if (int(series[-1]) + 1) * span >= 2**63:
        return np.lexsort((_ranked(value), time, step, series))
    # One number a point, and nearly ascending ones: what numpy's stable sort is fast at.
    place = series * span + (step - least)
    order = place.argsort(kind="stable")
    place = place[order]
    before = np.flatnonzero(place[1:] == place[:-1])
    # Points of one step mostly arrived in the order of their times.
    earlier, later = order[before], order[before + 1]
    if not _ascend(time, value, earlier, later):
        tied = np.zeros(len(order), np.bool_)
        tied[before] = tied[before + 1] = True
        some = order[tied]
        order[tied] = some[np.lexsort((_ranked(value[some]), time[some], place[tied]))]
    return order


def _ascend(
    time: Int64s,
    value: NDArray[np.float64],
    earlier: NDArray[np.intp],
    later: NDArray[np.intp],
) -> bool:
    """Return whether each earlier point comes before the later one by (time, value)."""
    if (time[later] < time[earlier]).any():
        return False
    equal = time[later] == time[earlier]
    return bool((_ranked(value[earlier[equal]]) <= _ranked(value[later[equal]])).all())


def _ranked(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values as they are ordered: NaN before all others."""
    return np.where(np.isnan(value), -np.inf, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The chunks of a flush, ordered by series and step.

    Attributes:
        starts, counts: int64, the points of each piece.
        series: int64, which series of the sorted points it belongs to.
        regular: bool, whether its steps are an arithmetic progression.
        min_value, max_value: float64, NaN ignored.
    """

    starts: Int64s
    counts: Int64s
    series: Int64s
    regular: NDArray[np.bool_]
    min_value: NDArray[np.float64]
    max_value: NDArray[np.float64]


def cut(ordered: Sorted) -> Pieces:
    """Cut each series into chunks whose rows stay small and whose offsets fit int32."""
    step, time, value = ordered.points.step, ordered.points.time, ordered.points.value
    bends = _bends(ordered)
    regular = bends is None or _regular(bends, ordered.starts, ordered.counts)
    cap = np.where(regular, CHUNK_POINTS_MAX, CHUNK_POINTS_MAX_IRREGULAR)
    parts = -(-ordered.counts // cap)
    if (parts == 1).all():
        starts, counts = ordered.starts, ordered.counts
        series = np.arange(len(counts))
    else:
        series = np.repeat(np.arange(len(parts)), parts)
        nth = np.arange(len(series)) - np.repeat(np.cumsum(parts) - parts, parts)
        # As equal as possible: few distinct lengths, and no tiny remainder.
        least, extra = ordered.counts // parts, ordered.counts % parts
        counts = least[series] + (nth < extra[series])
        starts = np.cumsum(counts) - counts

    while True:
        last = starts + counts - 1
        piece_regular = (
            np.ones(len(starts), np.bool_) if bends is None else _regular(bends, starts, counts)
        )
        first_time = time[starts]
        too_far = (np.maximum.reduceat(time, starts) - first_time > _OFFSET_MAX) | (
            first_time - np.minimum.reduceat(time, starts) > _OFFSET_MAX
        )
        too_far |= ~piece_regular & (step[last] - step[starts] > _OFFSET_MAX)
        if not too_far.any():
            break
        halves = np.where(too_far, 2, 1)
        of = np.repeat(np.arange(len(starts)), halves)
        second = np.zeros(len(of), np.bool_)
        second[1:] = of[1:] == of[:-1]
        half = counts[of] - counts[of] // 2
        series = series[of]
        starts = np.where(second, starts[of] + half, starts[of])
        counts = np.where(second, counts[of] - half, np.where(too_far[of], half, counts[of]))
    return Pieces(
        starts=starts,
        counts=counts,
        series=series,
        regular=piece_regular,
        min_value=np.fmin.reduceat(value, starts),
        max_value=np.fmax.reduceat(value, starts),
    )


def _bends(ordered: Sorted) -> Int64s | None:
    """Return how many points before each one change the stride, or None if none does."""
    step, starts = ordered.points.step, ordered.starts
    bend = np.zeros(len(step), np.bool_)
    stride = step[1:] - step[:-1]
    np.not_equal(stride[1:], stride[:-1], out=bend[1:-1])
    # A stride that leads to another series is none.
    bend[starts] = False
    bend[starts + ordered.counts - 1] = False
    if not bend.any():
        return None
    before = np.zeros(len(step) + 1, np.int64)
    np.cumsum(bend, out=before[1:])
    return before


def _regular(bends: Int64s, starts: Int64s, counts: Int64s) -> NDArray[np.bool_]:
    # Inner points of [s, s + n) are s + 1 .. s + n - 2.
    inner_end = starts + np.maximum(counts - 1, 1)
    regular: NDArray[np.bool_] = bends[inner_end] == bends[starts + 1]
    return regular


def fold(ordered: Sorted, pieces: Pieces, series_id: Int64s) -> Fold:
    """Fold points by series; the columns are in the order of `ordered.slots`."""
    last = ordered.starts + ordered.counts - 1
    first_piece = np.searchsorted(pieces.series, np.arange(len(ordered.slots)))
    return Fold(
        series_id=series_id[ordered.slots],
        count=ordered.counts,
        last_step=ordered.points.step[last],
        last_time=ordered.points.time[last],
        last_value=ordered.points.value[last],
        min_value=np.fmin.reduceat(pieces.min_value, first_piece),
        max_value=np.fmax.reduceat(pieces.max_value, first_piece),
    )


def pack(
    ordered: Sorted, pieces: Pieces, slots: SlotIdentity, portions: PortionIdentity
) -> list[memoryview]:
    """Return the rows of all pieces as a whole binary COPY stream, in several buffers."""
    buffers: list[memoryview] = [memoryview(_COPY_HEADER)]
    shape = pieces.counts * 2 + pieces.regular
    for code in np.unique(shape).tolist():
        which = np.flatnonzero(shape == code)
        buffers.append(
            _rows(ordered, pieces, which, code // 2, bool(code % 2), slots=slots, portions=portions)
        )
    buffers.append(memoryview(_COPY_TRAILER))
    return buffers


def _rows(
    ordered: Sorted,
    pieces: Pieces,
    which: NDArray[np.intp],
    points: int,
    regular: bool,
    *,
    slots: SlotIdentity,
    portions: PortionIdentity,
) -> memoryview:
    template = _row_template(points, regular)
    raw = np.empty((len(which), template.itemsize), np.uint8)
    raw[:] = np.frombuffer(template.tobytes(), np.uint8)
    rows = raw.view(template.dtype)[:, 0]
    starts = pieces.starts[which]
    step, time, value = ordered.points.step, ordered.points.time, ordered.points.value

    slot = ordered.slots[pieces.series[which]]
    portion = slots.portion[slot]
    rows["run_id"] = portions.run_id[portion]
    rows["series_id"] = slots.series_id[slot]
    rows["writer_no"] = portions.writer_no[portion]
    rows["last_sequence"] = portions.last_sequence[portion]
    rows["attempt"] = portions.attempt[portion]
    first_step, first_time = step[starts], time[starts]
    rows["first_step"] = first_step
    rows["last_step"] = step[starts + points - 1]
    rows["first_time"] = first_time
    rows["min_value"] = pieces.min_value[which]
    rows["max_value"] = pieces.max_value[which]

    rows["time_offsets"] = _matrix(time, starts, points) - first_time[:, None]
    rows["point_values"] = _matrix(value, starts, points)
    if not regular:
        rows["step_offsets"] = _matrix(step, starts, points) - first_step[:, None]
    return raw.data.cast("B")


def _matrix(column: Column, starts: Int64s, points: int) -> Column:
    """Return the stretches of a contiguous column that begin at `starts`, one a row."""
    first, count = int(starts[0]), len(starts)
    if starts[-1] == first + (count - 1) * points:  # neighbours: no copy
        return column[first : first + count * points].reshape(count, points)
    # A window as long as a stretch at every point; taking some copies each in one piece.
    windows = np.ndarray(
        (len(column) - points + 1,),
        np.dtype(f"V{points * column.itemsize}"),
        buffer=column,
        strides=(column.itemsize,),
    )
    taken: Column = windows[starts].view(column.dtype).reshape(count, points)
    return taken


@lru_cache(maxsize=4 * CHUNK_POINTS_MAX)
def _row_template(points: int, regular: bool) -> NDArray[np.void]:
    """Return one row, shape (1,), with all but the values filled in."""
    fixed = [
        ("run_id", "V16"),
        ("series_id", ">i8"),
        ("writer_no", ">i8"),
        ("last_sequence", ">i8"),
        ("first_step", ">i8"),
        ("last_step", ">i8"),
        ("first_time", ">i8"),
        ("min_value", ">f8"),
        ("max_value", ">f8"),
        ("attempt", ">i4"),
    ]
    packed = [("step_offsets", ">i4"), ("time_offsets", ">i4"), ("point_values", ">f8")]
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [("field_count", ">i2")]
    for name, datum in fixed:
        fields += [(f"{name}_bytes", ">i4"), (name, datum)]
    for name, datum in packed:
        fields.append((f"{name}_bytes", ">i4"))
        if not (regular and name == "step_offsets"):
            fields.append((name, datum, (points,)))
    row = np.zeros(1, np.dtype(fields))
    row["field_count"] = len(CHUNK_COLUMNS)
    for name, datum in fixed:
        row[f"{name}_bytes"] = np.dtype(datum).itemsize
    for name, datum in packed:
        row[f"{name}_bytes"] = points * np.dtype(datum).itemsize
    if regular:
        row["step_offsets_bytes"] = -1  # NULL
    return row


def gather(
    columns: Sequence[tuple[NDArray[np.uint32], Int64s, Int64s, NDArray[np.float64]]],
    bases: Sequence[int],
    slot_count: int,
) -> Points:
    """Concatenate the batches' columns; batch i's key indexes are moved up by `bases[i]`."""
    # Below, not at: a portion without keys may have the slot count itself as its base.
    dtype: DTypeLike = np.uint16 if slot_count < 65_536 else np.uint32
    slot = np.concatenate([column[0] for column in columns], dtype=dtype, casting="unsafe")
    slot += np.repeat(np.array(bases, dtype), [len(column[0]) for column in columns])
    return Points(
        slot=slot,
        step=np.concatenate([column[1] for column in columns]),
        time=np.concatenate([column[2] for column in columns]),
        value=np.concatenate([column[3] for column in columns]),
    )
