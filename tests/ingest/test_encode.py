"""Encoding a flush loses nothing, invents nothing, and counts what it promises to count."""

import math
from collections import Counter
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.errors import Reason
from gateway.domain.flush import LateMarks
from gateway.domain.limits import (
    CHUNK_POINTS_MAX,
    CHUNK_POINTS_MAX_IRREGULAR,
    STEP_MAX,
    STEP_MIN,
    SUMMARY_BLOCK_SERIES,
    TIME_US_MAX,
)
from gateway.ingest.chunks import Points, blocks, sort
from gateway.ingest.encode import encode, mark_targets
from tests.ingest.copy_format import ChunkRow, rows
from tests.ingest.streams import Point, batch, portion, session

_START = 1_700_000_000_000_000

_steps = st.one_of(
    st.integers(-5, 40), st.integers(STEP_MIN, STEP_MAX), st.integers(0, 2**33).map(lambda n: n)
)
_times = st.one_of(
    st.integers(_START, _START + 10**6),
    st.integers(0, TIME_US_MAX),
    st.integers(_START, _START + 2**34),
)
_values = st.floats(allow_nan=True, allow_infinity=True)
_points = st.lists(st.tuples(st.integers(0, 4), _steps, _times, _values), max_size=60)


def _bits(value: float) -> str:
    return "nan" if math.isnan(value) else value.hex()


def _stored(flush_pieces: list[memoryview]) -> list[ChunkRow]:
    return rows(b"".join(flush_pieces)) if flush_pieces else []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(_points, min_size=1, max_size=3), min_size=1, max_size=4))
def test_every_point_is_stored_once_with_its_series(flush: list[list[list[Point]]]) -> None:
    sessions = [session(5, writer_no=number) for number in range(len(flush))]
    portions = [
        portion(owner, *(batch(number + 1, points) for number, points in enumerate(batches)))
        for owner, batches in zip(sessions, flush, strict=True)
    ]
    encoded = encode(portions)
    found = Counter(
        (row.run_id, row.writer_no, row.series_id, step, time, _bits(value))
        for row in _stored(encoded.flush.copy_pieces)
        for step, time, value in row.points()
    )
    expected = Counter(
        (owner.writer.run_id, owner.writer.writer_no, 100 + index, step, time, _bits(value))
        for owner, batches in zip(sessions, flush, strict=True)
        for points in batches
        for index, step, time, value in points
    )
    assert found == expected
    for effect in encoded.effects:
        assert effect.counters.accepted_points == effect.portion.points
        assert effect.counters.rejected_points == 0


@pytest.mark.parametrize("seed", range(8))
def test_portions_of_few_and_many_keys_keep_apart(seed: int) -> None:
    """Sorting goes block by block of 256 slots; rejected points leave gaps, portions stay empty."""
    rng = np.random.default_rng(seed)
    sizes = rng.permutation([1, 2, 100, 255, 256, 257, 300, 1_000, 40_000, 3]).tolist()
    sessions = [session(size, writer_no=number) for number, size in enumerate(sizes)]
    portions, expected = [], Counter[tuple[int, int, int, int, str]]()
    for number, (owner, size) in enumerate(zip(sessions, sizes, strict=True)):
        count = int(rng.choice([1, 700]))
        bad = rng.random(count) < rng.choice([0, 0.3, 1])
        points = [
            (int(index), STEP_MAX + 1 if refused else int(step), _START, float(value))
            for index, step, value, refused in zip(
                rng.integers(size, size=count),
                rng.integers(50, size=count),
                rng.random(count),
                bad if seed % 2 else np.zeros(count, np.bool_),
                strict=True,
            )
        ]
        portions.append(portion(owner, batch(1, points)))
        expected.update(
            (number, 100 + index, step, time, _bits(value))
            for index, step, time, value in points
            if step <= STEP_MAX
        )
    found = Counter(
        (row.writer_no, row.series_id, step, time, _bits(value))
        for row in _stored(encode(portions).flush.copy_pieces)
        for step, time, value in row.points()
    )
    assert found == expected


def test_chunks_are_as_long_as_their_rows_may_be() -> None:
    points = [(0, step, _START, 1.0) for step in range(1_000)]
    points += [(1, step * step, _START, 1.0) for step in range(1_000)]
    lengths: dict[int, int] = {}
    for row in _stored(encode([portion(session(2), batch(1, points))]).flush.copy_pieces):
        lengths[row.series_id] = max(len(row.values), lengths.get(row.series_id, 0))
    assert 0.9 * CHUNK_POINTS_MAX < lengths[100] <= CHUNK_POINTS_MAX
    assert 0.9 * CHUNK_POINTS_MAX_IRREGULAR < lengths[101] <= CHUNK_POINTS_MAX_IRREGULAR


@settings(max_examples=200, deadline=None)
@given(_points)
def test_rows_are_ordered_and_their_bounds_are_true(points: list[Point]) -> None:
    encoded = encode([portion(session(5), batch(1, points))])
    for row in _stored(encoded.flush.copy_pieces):
        stored = row.points()
        steps = [step for step, _, _ in stored]
        assert steps == sorted(steps)
        assert (row.first_step, row.last_step) == (steps[0], steps[-1])
        numbers = [value for _, _, value in stored if not math.isnan(value)]
        if numbers:
            assert (row.min_value, row.max_value) == (min(numbers), max(numbers))
        else:
            assert math.isnan(row.min_value)
            assert math.isnan(row.max_value)


def _order(point: tuple[int, int, float]) -> tuple[int, int, bool, float]:
    step, time, value = point
    return step, time, not math.isnan(value), 0.0 if math.isnan(value) else value


@settings(max_examples=200, deadline=None)
@given(st.lists(_points, min_size=1, max_size=5))
def test_summaries_of_successive_flushes_equal_a_naive_fold(flushes: list[list[Point]]) -> None:
    owner = session(5)
    seen: dict[int, list[tuple[int, int, float]]] = {}
    late = repeated = 0
    for number, points in enumerate(flushes):
        marks = {index: max(seen[index])[0] for index in seen}
        encoded = encode([portion(owner, batch(number + 1, points))])
        encoded.apply()
        for index in {point[0] for point in points}:
            steps = [step for i, step, _, _ in points if i == index]
            late += sum(step <= marks.get(index, STEP_MIN - 1) for step in steps)
            repeated += len(steps) - len(set(steps) - {marks.get(index)})
        for index, step, time, value in points:
            seen.setdefault(index, []).append((step, time, value))
    assert owner.counters.late_points == late
    assert owner.counters.repeated_points == repeated

    columns = owner.summary.table
    floats = columns.view(np.float64)
    positions = owner.summary.series_positions()
    assert set(positions) == {100 + index for index in seen}
    for index, expected in seen.items():
        at = positions[100 + index]
        last = max(expected, key=_order)
        numbers = [value for _, _, value in expected if not math.isnan(value)]
        assert columns[1, at] == len(expected)
        assert (columns[2, at], columns[3, at]) == last[:2]
        assert _same(floats[4, at], last[2])
        assert _same(floats[5, at], min(numbers, default=math.nan))
        assert _same(floats[6, at], max(numbers, default=math.nan))


def _same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


def test_summary_rows_cover_only_the_blocks_that_changed() -> None:
    owner = session(3 * SUMMARY_BLOCK_SERIES)
    everything = [(index, 1, _START, 1.0) for index in range(3 * SUMMARY_BLOCK_SERIES)]
    encode([portion(owner, batch(1, everything))]).apply()
    encoded = encode([portion(owner, batch(2, [(SUMMARY_BLOCK_SERIES + 1, 2, _START, 5.0)]))])
    summaries = encoded.flush.summaries
    assert summaries.blocks == [1]
    assert (summaries.lo, summaries.hi) == ([1], [SUMMARY_BLOCK_SERIES])
    assert summaries.last_values[1] == 5.0
    assert summaries.point_counts[1] == 2
    assert summaries.series_ids == list(
        range(100 + SUMMARY_BLOCK_SERIES, 100 + 2 * SUMMARY_BLOCK_SERIES)
    )


def test_a_failed_try_leaves_no_trace_in_the_session() -> None:
    owner = session(5)
    points = [(0, 1, _START, 1.0), (4, 1, _START, 2.0)]
    first = encode([portion(owner, batch(1, points))])
    again = encode([portion(owner, batch(1, points))])
    assert b"".join(first.flush.copy_pieces) == b"".join(again.flush.copy_pieces)
    assert first.flush.summaries == again.flush.summaries
    assert owner.summary.size == 0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ((0, STEP_MAX + 1, _START, 1.0), Reason.STEP_OUT_OF_RANGE),
        ((0, STEP_MIN - 1, _START, 1.0), Reason.STEP_OUT_OF_RANGE),
        ((0, 5, -1, 1.0), Reason.TIME_OUT_OF_RANGE),
        ((0, 5, TIME_US_MAX + 1, 1.0), Reason.TIME_OUT_OF_RANGE),
    ],
)
def test_a_bad_point_is_rejected_alone_and_reported(bad: Point, reason: Reason) -> None:
    owner = session()
    good = (0, 7, _START, 3.0)
    encoded = encode([portion(owner, batch(1, [bad, good]))])
    (row,) = _stored(encoded.flush.copy_pieces)
    assert row.points() == [good[1:]]
    (effect,) = encoded.effects
    assert (effect.counters.accepted_points, effect.counters.rejected_points) == (1, 1)
    (sample,) = effect.samples
    assert (sample.reason, sample.key, sample.step, sample.sequence) == (reason, "k0", bad[1], 1)


def test_of_many_bad_keys_the_first_sixteen_of_each_writer_are_told() -> None:
    owners = [session(20), session(1)]
    bad = [(index, STEP_MAX + 1 + index, _START, 1.0) for index in (*range(20), 3)]
    good = (0, 1, _START, 1.0)
    encoded = encode(
        [
            portion(owners[0], batch(1, [*bad, good])),
            portion(owners[1], batch(1, [good, bad[0]])),
        ]
    )
    many, one = (effect.samples for effect in encoded.effects)
    assert [(sample.key, sample.step, sample.points) for sample in many] == [
        (f"k{index}", STEP_MAX + 1 + index, 1 + (index == 3)) for index in range(16)
    ]
    assert [(sample.key, sample.points) for sample in one] == [("k0", 1)]
    assert [effect.counters.rejected_points for effect in encoded.effects] == [21, 1]
    assert encoded.flush.points == 2


def test_a_flush_of_nothing_but_bad_points_does_not_hold_up_the_event_loop() -> None:
    owner = session(50_000)
    points = [(number % 50_000, STEP_MAX + 1, _START, 1.0) for number in range(262_144)]
    part = portion(owner, batch(1, points))
    began = process_time()
    encoded = encode([part])
    # About 0.05; looking at every point for every bad key took 2.
    assert process_time() - began < 1
    assert encoded.effects[0].counters.rejected_points == 262_144


def test_points_of_a_refused_key_are_rejected_with_its_reason() -> None:
    owner = session(2)
    owner.keys.define(2, "bad\0key")
    encoded = encode([portion(owner, batch(1, [(2, 1, _START, 1.0), (1, 1, _START, 1.0)]))])
    (sample,) = encoded.effects[0].samples
    assert sample.reason is Reason.KEY_INVALID
    assert sample.key == "bad\\0key"
    assert encoded.flush.points == 1


def test_late_points_of_a_rejecting_run_are_rejected_by_the_locked_mark() -> None:
    owner = session(1, rejects_late=True)
    part = portion(owner, batch(1, [(0, step, _START, 1.0) for step in (4, 5, 6, 9)]))
    targets = mark_targets([part])
    locked = LateMarks(
        run_ids=targets.run_ids,
        series_ids=targets.series_ids,
        attempts=targets.attempts,
        last_steps=[5],
    )
    encoded = encode([part], marks=locked)
    assert [step for row in _stored(encoded.flush.copy_pieces) for step, _, _ in row.points()] == [
        6,
        9,
    ]
    (sample,) = encoded.effects[0].samples
    assert (sample.reason, sample.points) == (Reason.STEP_LATE, 2)
    assert encoded.flush.marks is not None
    assert list(encoded.flush.marks.last_steps) == [9]


def test_a_refused_batch_advances_the_watermark_and_stores_nothing() -> None:
    owner = session()
    part = portion(owner, batch(1, [(0, 1, _START, 1.0)]))
    encoded = encode([part], refuse=(Reason.STORE_REFUSED, "refused"))
    assert encoded.flush.copy_pieces == []
    assert encoded.flush.advances[0].last_sequence == 1
    assert encoded.flush.advances[0].counters.rejected_points == 1


def test_a_flush_with_more_slots_than_16_bits_sorts_like_any_other() -> None:
    owner = session(70_000)
    points = [(index, step, _START, float(index)) for step in (1, 2) for index in range(70_000)]
    encoded = encode(
        [portion(owner, *(batch(n + 1, points[n * 7000 : (n + 1) * 7000]) for n in range(20)))]
    )
    found = _stored(encoded.flush.copy_pieces)
    assert len(found) == 70_000
    assert all(
        row.points() == [(1, _START, row.series_id - 100.0), (2, _START, row.series_id - 100.0)]
        for row in found
    )


_few_steps = st.one_of(st.integers(0, 3), st.sampled_from([STEP_MIN, STEP_MAX, -(2**62), 2**62]))
_few_values = st.sampled_from([math.nan, -math.inf, math.inf, -0.0, 0.0, 1.0])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), _few_steps, st.integers(0, 2), _few_values), min_size=1)
)
def test_points_are_sorted_by_series_step_time_and_value(
    points: list[tuple[int, int, int, float]],
) -> None:
    slot, step, time, value = zip(*points, strict=True)
    ordered = sort(
        Points(
            slot=np.array(slot, np.uint16),
            step=np.array(step, np.int64),
            time=np.array(time, np.int64),
            value=np.array(value),
        ),
        blocks([3], [len(points)]),
    ).points
    found = zip(
        ordered.slot.tolist(),
        ordered.step.tolist(),
        ordered.time.tolist(),
        map(_bits, ordered.value.tolist()),
        strict=True,
    )
    # Stable: what is equal stays in the order of arrival, NaN beside -inf, -0.0 beside 0.0.
    expected = sorted(points, key=lambda p: (*p[:3], -math.inf if math.isnan(p[3]) else p[3]))
    assert list(found) == [(*point[:3], _bits(point[3])) for point in expected]


def test_regular_steps_are_not_stored() -> None:
    owner = session(2)
    points = [(0, 10 * n, _START + n, 1.0) for n in range(200)]
    points += [(1, n * n, _START + n, 1.0) for n in range(200)]
    stored = _stored(encode([portion(owner, batch(1, points))]).flush.copy_pieces)
    assert {row.series_id: row.step_offsets is None for row in stored} == {100: True, 101: False}
