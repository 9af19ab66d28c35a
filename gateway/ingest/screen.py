"""Rejects points of a flush for their content, and keeps a few of them as samples.

Pure. Called by `encode` before anything is sorted.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.domain.errors import Reason
from gateway.domain.flush import LateMarks, RejectionSample
from gateway.domain.limits import (
    REJECTION_SAMPLES_MAX,
    STEP_MAX,
    STEP_MIN,
    TIME_US_MAX,
    TIME_US_MIN,
)
from gateway.ingest import chunks
from gateway.ingest.coalescer import Portion
from gateway.ingest.dictionary import REFUSED
from gateway.ingest.summary import INT64_MIN


class Screen:
    """Rejects points for their content and keeps samples, by portion."""

    def __init__(
        self,
        portions: Sequence[Portion],
        bases: NDArray[np.int64],
        slots: chunks.SlotIdentity,
    ) -> None:
        """Prepare.

        Args:
            portions: of the flush.
            bases: the first slot of each.
            slots: of the keys of all portions, end to end.
        """
        self._portions = portions
        self._bases = bases
        self._slots = slots
        self._samples: dict[int, list[RejectionSample]] = {}

    def samples(self, number: int) -> tuple[RejectionSample, ...]:
        """Return what is told of the rejected points of a portion."""
        return tuple(self._samples.get(number, ())[:REJECTION_SAMPLES_MAX])

    def run(
        self,
        points: chunks.Points,
        *,
        marks: LateMarks | None,
        refuse: tuple[Reason, str] | None,
    ) -> chunks.Points:
        """Return the points to store."""
        if not len(points.value):
            return points
        if refuse is not None:
            everything = np.ones(len(points.value), np.bool_)
            return self._reject(points, everything, refuse[0], "batch", refuse[1])
        if any(portion.session.keys.has_refusals for portion in self._portions):
            points = self._reject_refused_keys(points)
        if len(points.value) and (points.step.min() < STEP_MIN or points.step.max() > STEP_MAX):
            bad = (points.step < STEP_MIN) | (points.step > STEP_MAX)
            detail = f"step is outside [{STEP_MIN}, {STEP_MAX}]"
            points = self._reject(points, bad, Reason.STEP_OUT_OF_RANGE, "batch.step", detail)
        if len(points.value) and (
            points.time.min() < TIME_US_MIN or points.time.max() > TIME_US_MAX
        ):
            bad = (points.time < TIME_US_MIN) | (points.time > TIME_US_MAX)
            detail = f"time_unix_us is outside [{TIME_US_MIN}, {TIME_US_MAX}]"
            points = self._reject(
                points, bad, Reason.TIME_OUT_OF_RANGE, "batch.time_unix_us", detail
            )
        if marks is not None and len(points.value):
            by_slot = self._marks_by_slot(marks)
            bad = points.step <= by_slot[points.slot]
            if bad.any():
                detail = "step is at or below the greatest committed step of its series and attempt"
                points = self._reject(points, bad, Reason.STEP_LATE, "batch.step", detail)
        return points

    def _reject_refused_keys(self, points: chunks.Points) -> chunks.Points:
        bad = self._slots.series_id[points.slot] == REFUSED
        for first, count in self._told(points, bad):
            slot = int(points.slot[first])
            number = int(self._slots.portion[slot])
            keys = self._portions[number].session.keys
            reason, detail = keys.refusal(slot - int(self._bases[number]))
            self._note(points, first, count, reason=reason, field="keys.key", detail=detail)
        return points.only(~bad)

    def _reject(
        self, points: chunks.Points, bad: NDArray[np.bool_], reason: Reason, field: str, detail: str
    ) -> chunks.Points:
        for first, count in self._told(points, bad):
            self._note(points, first, count, reason=reason, field=field, detail=detail)
        return points.only(~bad)

    def _told(self, points: chunks.Points, bad: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
        """Yield the first bad point of a slot and how many there are, of no more slots of a
        portion than there may be samples: there can be as many bad slots as points."""
        places = np.flatnonzero(bad)
        slots, firsts, counts = np.unique(
            points.slot[places], return_index=True, return_counts=True
        )
        owner = self._slots.portion[slots]  # ascending, as slots are
        told = np.arange(len(slots)) - np.searchsorted(owner, owner) < REJECTION_SAMPLES_MAX
        yield from zip(places[firsts[told]].tolist(), counts[told].tolist(), strict=True)

    def _note(
        self,
        points: chunks.Points,
        first: int,
        count: int,
        *,
        reason: Reason,
        field: str,
        detail: str,
    ) -> None:
        slot = int(points.slot[first])
        number = int(self._slots.portion[slot])
        portion = self._portions[number]
        index = slot - int(self._bases[number])
        values = {"batch.step": points.step, "batch.time_unix_us": points.time}
        if field in values:
            detail = f"{detail}; it is {int(values[field][first])}"
        samples = self._samples.setdefault(number, [])
        if len(samples) < REJECTION_SAMPLES_MAX:
            samples.append(
                RejectionSample(
                    reason=reason,
                    key=portion.session.keys.key(index)[:250].replace("\0", "\\0") or str(index),
                    step=int(points.step[first]),
                    sequence=portion.last_sequence,
                    field=field,
                    detail=detail,
                    points=count,
                )
            )

    def _marks_by_slot(self, marks: LateMarks) -> NDArray[np.int64]:
        keys = zip(marks.run_ids, marks.series_ids, marks.attempts, strict=True)
        by_key = dict(zip(keys, marks.last_steps, strict=True))
        by_slot = np.full(len(self._slots.series_id), INT64_MIN, np.int64)
        for slot, (number, series_id) in enumerate(
            zip(self._slots.portion.tolist(), self._slots.series_id.tolist(), strict=True)
        ):
            writer = self._portions[number].session.writer
            step = by_key.get((writer.run_id, series_id, writer.attempt))
            if step is not None:
                by_slot[slot] = step
        return by_slot
