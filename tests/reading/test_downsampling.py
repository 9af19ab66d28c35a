"""M4 keeps what a chart shows."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.domain.downsampling import M4Reducer, candidate_chunks, chosen_points, span_width
from gateway.domain.policies import Points

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
_VALUES = st.one_of(st.floats(width=16), st.integers(-2, 2).map(float))


@st.composite
def series(draw: st.DrawFn) -> Series:
    steps = draw(
        st.one_of(
            st.lists(st.integers(0, 60), min_size=1, max_size=80),
            st.lists(st.integers(-(2**62), 2**62 - 1), min_size=1, max_size=30),
        )
    )
    values = draw(st.lists(_VALUES, min_size=len(steps), max_size=len(steps)))
    return np.array(sorted(steps), np.int64), np.array(values, np.float64)


def points_of(steps: NDArray[np.int64], values: NDArray[np.float64]) -> Points:
    count = len(steps)
    zeros = np.zeros(count, np.int32)
    # The time numbers the points, so that each can be told from its equals.
    return Points(step=steps, time_us=np.arange(count), value=values, attempt=zeros, rank=zeros)


def reduced(steps: NDArray[np.int64], values: NDArray[np.float64], max_points: int) -> Points:
    reducer = M4Reducer(first_step=int(steps[0]), last_step=int(steps[-1]), max_points=max_points)
    reducer.push(points_of(steps, values))
    kept = reducer.finish()
    assert kept is not None
    return kept


@given(data=series(), max_points=st.integers(4, 40))
def test_output_is_ascending_and_within_the_limit_and_keeps_ends_and_extremes(
    data: Series, max_points: int
) -> None:
    steps, values = data
    kept = reduced(steps, values, max_points)
    places = kept.time_us
    assert len(kept) <= max_points
    assert (np.diff(places) > 0).all()
    assert places[0] == 0
    assert places[-1] == len(steps) - 1
    if not np.isnan(values).all():
        assert np.nanmin(kept.value) == np.nanmin(values)
        assert np.nanmax(kept.value) == np.nanmax(values)
    else:
        assert np.isnan(kept.value).all()


@given(data=series(), spare=st.integers(0, 5))
def test_a_series_that_fits_is_kept_whole(data: Series, spare: int) -> None:
    steps, values = data
    kept = reduced(steps, values, max(4, len(steps) + spare))
    assert len(kept) == len(steps)


@given(data=series(), max_points=st.integers(4, 12), cuts=st.lists(st.integers(0, 80), max_size=4))
def test_pieces_give_the_same_as_the_whole(data: Series, max_points: int, cuts: list[int]) -> None:
    steps, values = data
    whole = reduced(steps, values, max_points)
    points = points_of(steps, values)
    reducer = M4Reducer(first_step=int(steps[0]), last_step=int(steps[-1]), max_points=max_points)
    borders = [0, *sorted(min(cut, len(steps)) for cut in cuts), len(steps)]
    for begin, end in pairwise(borders):
        reducer.push(points.take(slice(begin, end)))
        if len(steps) > max_points and reducer._seen > max_points:
            reducer._reduce()
    kept = reducer.finish()
    assert kept is not None
    assert kept.time_us.tolist() == whole.time_us.tolist()


@given(data=series(), max_points=st.integers(4, 12), size=st.integers(1, 6))
def test_chunks_that_are_not_candidates_hold_no_chosen_point(
    data: Series, max_points: int, size: int
) -> None:
    steps, places = np.unique(data[0], return_index=True)
    values = data[1][places]
    first_step, width = int(steps[0]), span_width(int(steps[0]), int(steps[-1]), max_points)
    chunks = [slice(begin, begin + size) for begin in range(0, len(steps), size)]
    extremes = [(np.fmin.reduce(values[chunk]), np.fmax.reduce(values[chunk])) for chunk in chunks]
    candidates = candidate_chunks(
        np.array([steps[chunk][0] for chunk in chunks]),
        np.array([steps[chunk][-1] for chunk in chunks]),
        np.array([least for least, _ in extremes]),
        np.array([greatest for _, greatest in extremes]),
        first_step=first_step,
        width=width,
    )
    chosen = chosen_points(steps, values, first_step=first_step, width=width)
    assert candidates[np.unique(chosen // size)].all()
