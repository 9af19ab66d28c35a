"""Random histories of a run, and their storage."""

import math
from dataclasses import dataclass

import asyncpg
from hypothesis import strategies as st

from tests.reading.naive import History, Stored
from tests.support.chunks import StoredRun, StoredWriter

KEYS = ("a", "b/é", "epoch")
_VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf]),
    st.integers(-3, 3).map(float),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """What one writer commits at once."""

    rank: int
    attempt: int
    process: int  # two processes of a rank are two writers
    chunk_points: int
    points: list[tuple[str, int, int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A run to be stored."""

    step_policy: int
    resume_steps: dict[int, int | None]
    exempt_keys: list[str]
    flushes: list[Flush]


_STEPS = st.one_of(st.integers(0, 12), st.sampled_from([-(2**62), 2**62 - 1, -5]))


@st.composite
def _flushes(draw: st.DrawFn, attempts: int) -> Flush:
    if draw(st.booleans()):  # an orderly stretch, as most are
        begin, length = draw(st.integers(0, 30)), draw(st.integers(1, 25))
        stride = draw(st.integers(1, 3))
        key = draw(st.sampled_from(KEYS))
        points = [
            (key, begin + i * stride, 1_000 + begin + i, draw(_VALUES)) for i in range(length)
        ]
    else:
        point = st.tuples(
            st.sampled_from(KEYS),
            _STEPS,
            st.one_of(st.integers(0, 3), st.sampled_from([1_700_000_000_000_001, 10**17 + 1])),
            _VALUES,
        )
        points = draw(st.lists(point, min_size=1, max_size=12))
    return Flush(
        rank=draw(st.integers(0, 2)),
        attempt=draw(st.integers(1, attempts)),
        process=draw(st.integers(0, 1)),
        chunk_points=draw(st.sampled_from([1, 2, 5, 100])),
        points=points,
    )


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    attempts = draw(st.integers(1, 3))
    resume_steps = {
        attempt: draw(st.one_of(st.none(), st.integers(0, 40)))
        for attempt in range(1, attempts + 1)
    }
    return Script(
        step_policy=draw(st.integers(1, 3)),
        resume_steps=resume_steps,
        exempt_keys=draw(st.sampled_from([[], ["epoch"]])),
        flushes=draw(st.lists(_flushes(attempts), max_size=8)),
    )


async def store(connection: asyncpg.Connection, script: Script) -> tuple[StoredRun, History]:
    """Store a script; return the run and what is in it."""
    run = await StoredRun.create(connection, step_policy=script.step_policy)
    history = History(resume_steps=script.resume_steps, exempt_keys=set(script.exempt_keys))
    for attempt, resume_step in script.resume_steps.items():
        await run.attempt(attempt, resume_step, script.exempt_keys if attempt > 1 else ())
    if len(script.resume_steps) == 1:
        history.exempt_keys.clear()
    writers: dict[tuple[int, int, int], StoredWriter] = {}
    for flush in script.flushes:
        name = (flush.rank, flush.attempt, flush.process)
        if name not in writers:
            writers[name] = await run.writer(rank=flush.rank, attempt=flush.attempt)
        await run.commit(writers[name], flush.points, chunk_points=flush.chunk_points)
        history.points += [
            Stored(
                key=key,
                rank=flush.rank,
                attempt=flush.attempt,
                step=step,
                time_us=time_us,
                value=value,
            )
            for key, step, time_us, value in flush.points
        ]
    return run, history
