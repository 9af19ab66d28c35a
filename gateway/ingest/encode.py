"""From the portions of a flush to what the store writes and the sessions learn.

Pure. Called by `writer` for each try of a flush, always from the same state: the
effects touch a session only when `Encoded.apply` is called after the commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.domain.errors import Reason
from gateway.domain.flush import (
    Counters,
    EncodedFlush,
    LateMarks,
    RejectionSample,
    SummaryRows,
    WriterAdvance,
    refusal_sample,
)
from gateway.domain.limits import REJECTION_SAMPLES_MAX
from gateway.domain.metadata import MetadataRows, Refusal
from gateway.ingest import chunks
from gateway.ingest.coalescer import Portion
from gateway.ingest.dictionary import UNRESOLVED
from gateway.ingest.screen import Screen
from gateway.ingest.summary import Advanced, Fold, SummaryPart, advance


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a commit changes in one session."""

    portion: Portion
    counters: Counters
    samples: tuple[RejectionSample, ...]
    new_positions: tuple[NDArray[np.intp], NDArray[np.int32]] | None
    advanced: Advanced | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A flush and its effects, in the order of the portions."""

    flush: EncodedFlush
    effects: list[Effect]

    def apply(self) -> None:
        """Adopt the commit in every session."""
        self._report_refusals()
        for effect in self.effects:
            session = effect.portion.session
            if effect.new_positions is not None:
                indexes, positions = effect.new_positions
                session.keys.positions[indexes] = positions
            if effect.advanced is not None:
                session.summary.apply(effect.advanced)
            session.counters = session.counters.plus(effect.counters)
            if effect.samples:
                session.report(effect.samples)
            session.committed(effect.portion.last_sequence, effect.portion.size_bytes)

    def _report_refusals(self) -> None:
        """Count and report the metadata entries that were refused, some by the store."""
        if self.flush.metadata is None:
            return
        for refusal in self.flush.metadata.refusals:
            portion = self.effects[refusal.place].portion
            session = portion.session
            session.counters = session.counters.plus(Counters(rejected_entries=1))
            session.report((refusal_sample(refusal, sequence=portion.last_sequence),))


def unresolved_indexes(portion: Portion) -> list[int]:
    """Return the key indexes of a portion whose series id is not known yet, ascending."""
    keys = portion.session.keys
    if not keys.unresolved:
        return []
    used = np.zeros(keys.size, np.bool_)
    for batch in portion.batches:
        used[batch.series_index] = True
    indexes: list[int] = np.flatnonzero(
        used & (keys.series_ids[: keys.size] == UNRESOLVED)
    ).tolist()
    return indexes


def mark_targets(portions: Sequence[Portion]) -> LateMarks:
    """Return the (run, series, attempt) of every key the portions use, sorted, without steps."""
    found = {
        (portion.session.writer.run_id, int(series_id), portion.session.writer.attempt)
        for portion in portions
        for batch in portion.batches
        for series_id in np.unique(portion.session.keys.series_ids[batch.series_index])
        if series_id > 0
    }
    targets = sorted(found)
    return LateMarks(
        run_ids=[run_id for run_id, _, _ in targets],
        series_ids=[series_id for _, series_id, _ in targets],
        attempts=[attempt for _, _, attempt in targets],
        last_steps=[None] * len(targets),
    )


def encode(
    portions: Sequence[Portion],
    *,
    marks: LateMarks | None = None,
    refuse: tuple[Reason, str] | None = None,
) -> Encoded:
    """Encode a flush.

    Args:
        portions: what to store, at most one of each session; every used key is
            resolved or refused.
        marks: for runs that reject late points: the locked marks of `mark_targets`.
        refuse: rejects every point, with this reason and detail.
    """
    sizes = [portion.session.keys.size for portion in portions]
    bases = np.cumsum([0, *sizes])
    slot_count = int(bases[-1])
    points = chunks.gather(
        [
            (batch.series_index, batch.step, batch.time, batch.value)
            for portion in portions
            for batch in portion.batches
        ],
        [
            base
            for portion, base in zip(portions, bases.tolist(), strict=False)
            for _ in portion.batches
        ],
        slot_count,
    )
    slots = chunks.SlotIdentity(
        portion=np.repeat(np.arange(len(portions), dtype=np.int32), sizes),
        series_id=np.concatenate(
            [
                portion.session.keys.series_ids[:size]
                for portion, size in zip(portions, sizes, strict=True)
            ]
        ),
    )
    screen = Screen(portions, bases, slots)
    points = screen.run(points, marks=marks, refuse=refuse)
    stored = len(points.value)

    late = np.zeros(len(portions), np.int64)
    repeated = np.zeros(len(portions), np.int64)
    accepted = np.zeros(len(portions), np.int64)
    new_positions: list[tuple[NDArray[np.intp], NDArray[np.int32]] | None] = [None] * len(portions)
    advanced: list[Advanced | None] = [None] * len(portions)
    summaries = SummaryRows()
    copy_pieces: list[memoryview] = []
    chunk_count = 0
    if stored:
        point_counts = (
            [portion.points for portion in portions]
            if stored == sum(portion.points for portion in portions)
            else np.bincount(slots.portion[points.slot], minlength=len(portions)).tolist()
        )
        ordered = chunks.sort(points, chunks.blocks(sizes, point_counts))
        pieces = chunks.cut(ordered)
        chunk_count = len(pieces.starts)
        copy_pieces = chunks.pack(ordered, pieces, slots, _portion_identity(portions))
        series_portion = slots.portion[ordered.slots]
        accepted = _sum_by(series_portion, ordered.counts, len(portions))
        fold = chunks.fold(ordered, pieces, slots.series_id)
        parts, owners = _summary_parts(portions, bases, ordered, series_portion, new_positions)
        summaries, states, series_marks = advance(parts, fold)
        late, repeated = _late_and_repeated(ordered, series_marks, series_portion, len(portions))
        for owner, state in zip(owners, states, strict=True):
            advanced[owner] = state
        if marks is not None:
            marks = _raised(marks, portions, fold, series_portion)

    effects: list[Effect] = []
    advances: list[WriterAdvance] = []
    for number, portion in enumerate(portions):
        samples = screen.samples(number)
        counters = Counters(
            accepted_points=int(accepted[number]),
            late_points=int(late[number]),
            repeated_points=int(repeated[number]),
            rejected_points=portion.points - int(accepted[number]),
        )
        session = portion.session
        kept = (*session.rejections, *samples)[-REJECTION_SAMPLES_MAX:] if samples else None
        advances.append(
            WriterAdvance(
                run_id=session.writer.run_id,
                writer_id=session.writer.writer_id,
                epoch=session.writer.epoch,
                first_sequence=portion.first_sequence,
                last_sequence=portion.last_sequence,
                counters=counters,
                rejections=kept,
            )
        )
        effects.append(
            Effect(
                portion=portion,
                counters=counters,
                samples=samples,
                new_positions=new_positions[number],
                advanced=advanced[number],
            )
        )
    flush = EncodedFlush(
        metadata=_metadata(portions, refuse),
        advances=advances,
        copy_pieces=copy_pieces,
        summaries=summaries,
        marks=marks,
        points=stored,
        chunks=chunk_count,
    )
    return Encoded(flush=flush, effects=effects)


def _metadata(
    portions: Sequence[Portion], refuse: tuple[Reason, str] | None
) -> MetadataRows | None:
    """Return what the portions say of their runs; None, in nearly every flush, for nothing."""
    rows: MetadataRows | None = None
    for number, portion in enumerate(portions):
        for batch in portion.batches:
            if not batch.metadata:
                continue
            rows = rows or MetadataRows()
            if refuse is None:
                rows.add(portion.session.writer.run_id, batch.metadata, number)
                continue
            reason, detail = refuse
            rows.refusals += [
                Refusal(place=number, reason=reason, key="", field="metadata", detail=detail)
            ] * len(batch.metadata)
    return rows


def _portion_identity(portions: Sequence[Portion]) -> chunks.PortionIdentity:
    writers = [portion.session.writer for portion in portions]
    return chunks.PortionIdentity(
        run_id=np.frombuffer(b"".join(writer.run_id.bytes for writer in writers), "V16"),
        writer_no=np.array([writer.writer_no for writer in writers], np.int64),
        last_sequence=np.array([portion.last_sequence for portion in portions], np.int64),
        attempt=np.array([writer.attempt for writer in writers], np.int32),
    )


def _sum_by(owner: NDArray[np.int32], amounts: NDArray[np.int64], owners: int) -> NDArray[np.int64]:
    # Counts stay far below 2^53, so bincount's float64 sums are exact.
    return np.bincount(owner, weights=amounts, minlength=owners).astype(np.int64)


def _summary_parts(
    portions: Sequence[Portion],
    bases: NDArray[np.int64],
    ordered: chunks.Sorted,
    series_portion: NDArray[np.int32],
    new_positions: list[tuple[NDArray[np.intp], NDArray[np.int32]] | None],
) -> tuple[list[SummaryPart], list[int]]:
    """Return the part of each portion that has points, and the portions' numbers."""
    parts: list[SummaryPart] = []
    owners: list[int] = []
    edges = np.searchsorted(series_portion, np.arange(len(portions) + 1)).tolist()
    for number, portion in enumerate(portions):
        first, end = edges[number], edges[number + 1]
        if first == end:
            continue
        session = portion.session
        indexes = ordered.slots[first:end] - bases[number]
        positions = session.keys.positions[indexes]
        fresh = np.flatnonzero(positions < 0)
        if len(fresh):
            size = session.summary.size
            positions[fresh] = np.arange(size, size + len(fresh), dtype=np.int32)
            new_positions[number] = (indexes[fresh], positions[fresh])
        owners.append(number)
        parts.append(
            SummaryPart(
                run_id=session.writer.run_id,
                writer_no=session.writer.writer_no,
                summary=session.summary,
                positions=positions,
            )
        )
    return parts, owners


def _late_and_repeated(
    ordered: chunks.Sorted,
    marks: NDArray[np.int64],
    series_portion: NDArray[np.int32],
    portions: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    late = np.zeros(portions, np.int64)
    repeated = np.zeros(portions, np.int64)
    step, starts = ordered.points.step, ordered.starts
    if ordered.repeats is not None:
        repeated += _sum_by(
            series_portion, np.add.reduceat(ordered.repeats.astype(np.int64), starts), portions
        )
    suspect = np.flatnonzero(step[starts] <= marks)
    if len(suspect):
        spans = ordered.counts[suspect]
        owner = np.repeat(suspect, spans)
        inner = np.arange(len(owner)) - np.repeat(np.cumsum(spans) - spans, spans)
        place = starts[owner] + inner
        is_late = step[place] <= marks[owner]
        late += _sum_by(series_portion[owner], is_late.astype(np.int64), portions)
        again = step[place] == marks[owner]
        if ordered.repeats is not None:
            again &= ~ordered.repeats[place]
        repeated += _sum_by(series_portion[owner], again.astype(np.int64), portions)
    return late, repeated


def _raised(
    marks: LateMarks,
    portions: Sequence[Portion],
    fold: Fold,
    series_portion: NDArray[np.int32],
) -> LateMarks:
    """Return the marks with the steps of this flush."""
    keys = zip(marks.run_ids, marks.series_ids, marks.attempts, strict=True)
    raised = dict(zip(keys, marks.last_steps, strict=True))
    for number, series_id, step in zip(
        series_portion.tolist(), fold.series_id.tolist(), fold.last_step.tolist(), strict=True
    ):
        writer = portions[number].session.writer
        key = (writer.run_id, series_id, writer.attempt)
        before = raised.get(key)
        raised[key] = step if before is None else max(before, step)
    return LateMarks(
        run_ids=marks.run_ids,
        series_ids=marks.series_ids,
        attempts=marks.attempts,
        last_steps=list(raised.values()),
    )
