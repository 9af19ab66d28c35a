"""What the canary writes and what it must therefore read: pure functions of a sequence number."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

WINDOW_STEPS: Final = 200
"""Steps a read goes back at least, so that each is read by several beats."""
_MIXER: Final = 2_654_435_761  # Knuth's multiplicative hash: neighbours get unlike values


def step_of(sequence: int) -> int:
    """Return the step of a record: every other pair of steps changes places on its way."""
    match sequence % 4:
        case 1:
            return sequence + 1
        case 2:
            return sequence - 1
        case _:
            return sequence


def value_of(step: int) -> float:
    """Return the value logged at a step: dyadic, so that it must come back bit for bit."""
    return (step * _MIXER % 2**32) / 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one read showed; all zero when all is well.

    Attributes:
        lost: acknowledged points that are not there.
        doubled: points stored beyond those that were sent.
        disordered: neighbours whose steps do not ascend.
        wrong: points with another value than was sent, or that were never sent.
    """

    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    wrong: int = 0

    @property
    def healthy(self) -> bool:
        return self == Verdict()


def first_step_of_window(committed_sequence: int, verified_sequence: int) -> int:
    """Return the first step that a read has to ask for: what was acknowledged since the last
    read, however much, is in it. No record has a step further below its sequence than 1."""
    return max(1, min(committed_sequence - WINDOW_STEPS, verified_sequence))


def judge(
    *,
    committed_sequence: int,
    verified_sequence: int,
    steps: Sequence[int],
    values: Sequence[float],
    stored_points: int,
) -> Verdict:
    """Compare a read with what was acknowledged and nothing else was sent.

    Args:
        committed_sequence: the acknowledged watermark; all that was sent.
        verified_sequence: the watermark of the read before; 0 for the first.
        steps, values: what a read from `first_step_of_window` on returned, in its order.
        stored_points: how many points the series holds in all.
    """
    first = first_step_of_window(committed_sequence, verified_sequence)
    expected = {
        step
        for sequence in range(max(1, first - 1), committed_sequence + 1)
        if (step := step_of(sequence)) >= first
    }
    return Verdict(
        lost=len(expected - set(steps)) + max(0, committed_sequence - stored_points),
        doubled=max(0, stored_points - committed_sequence) + len(steps) - len(set(steps)),
        disordered=sum(after <= before for before, after in pairwise(steps)),
        wrong=sum(
            step not in expected or value != value_of(step)
            for step, value in zip(steps, values, strict=True)
        ),
    )
