"""The canary sees every fault that is put into what it reads, and none that is not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canary.ledger import Verdict, first_step_of_window, judge, step_of, value_of

WATERMARKS = st.integers(4, 100_000).map(lambda number: number - number % 4)


def a_true_read(committed: int) -> tuple[list[int], list[float]]:
    steps = list(range(first_step_of_window(committed, committed), committed + 1))
    return steps, [value_of(step) for step in steps]


def verdict(committed: int, steps: list[int], values: list[float], extra: int = 0) -> Verdict:
    return judge(
        committed_sequence=committed,
        verified_sequence=committed,
        steps=steps,
        values=values,
        stored_points=committed + extra,
    )


@given(WATERMARKS)
def test_records_are_a_permutation_of_the_steps(count: int) -> None:
    window = range(max(1, count - 400), count + 1)
    if window.start % 4 != 1:
        window = range(1, 1 + 4 * 20)
    assert sorted(step_of(sequence) for sequence in window) == list(window)


@given(st.integers(1, 100_000), st.integers(0, 2_000))
def test_a_true_read_is_healthy_at_every_watermark(committed: int, unverified: int) -> None:
    verified = max(0, committed - unverified)
    first = first_step_of_window(committed, verified)
    steps = sorted(
        step
        for sequence in range(max(1, first - 2), committed + 1)
        if (step := step_of(sequence)) >= first
    )
    values = [value_of(step) for step in steps]
    assert judge(
        committed_sequence=committed,
        verified_sequence=verified,
        steps=steps,
        values=values,
        stored_points=committed,
    ).healthy


@given(st.integers(0, 100_000), st.integers(1, 2_000))
def test_every_record_since_the_read_before_is_read(verified: int, more: int) -> None:
    first = first_step_of_window(verified + more, verified)
    assert all(step_of(verified + number) >= first for number in range(1, more + 1))


def test_a_loss_of_more_than_the_window_is_lost() -> None:
    steps = list(range(501, 1_001))
    found = judge(
        committed_sequence=1_000,
        verified_sequence=0,
        steps=steps,
        values=[value_of(step) for step in steps],
        stored_points=1_000,
    )
    assert found == Verdict(lost=500)


@given(WATERMARKS, st.data())
def test_a_missing_point_is_lost(committed: int, data: st.DataObject) -> None:
    steps, values = a_true_read(committed)
    index = data.draw(st.integers(0, len(steps) - 1))
    del steps[index], values[index]
    assert verdict(committed, steps, values).lost == 1


def test_a_loss_before_the_window_is_lost_too() -> None:
    steps, values = a_true_read(1_000)
    assert verdict(1_000, steps, values, extra=-3).lost == 3


def test_a_point_stored_twice_is_doubled() -> None:
    steps, values = a_true_read(1_000)
    assert verdict(1_000, steps, values, extra=2).doubled == 2


def test_a_step_out_of_order_is_disordered() -> None:
    steps, values = a_true_read(100)
    steps[5], steps[6] = steps[6], steps[5]
    values[5], values[6] = values[6], values[5]
    assert verdict(100, steps, values) == Verdict(disordered=1)


@pytest.mark.parametrize("change", [1e-9, float("nan")])
def test_another_value_is_wrong(change: float) -> None:
    steps, values = a_true_read(100)
    values[7] += change
    assert verdict(100, steps, values) == Verdict(wrong=1)
