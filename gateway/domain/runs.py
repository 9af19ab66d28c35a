"""Runs as values: what the store returns and the services show."""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final
from uuid import UUID


class RunState(IntEnum):
    """What a run's job is doing; the numbers of headrace.v1.RunState."""

    RUNNING = 1
    FINISHED = 2
    FAILED = 3
    KILLED = 4
    LOST = 5


END_STATES: Final = frozenset({RunState.FINISHED, RunState.FAILED, RunState.KILLED})
"""The states that FinishRun may set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One (re)start of a run's job; see headrace.v1.Attempt."""

    attempt: int
    resume_step: int | None
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training job; see headrace.v1.Run. Policies are numbers of the contract."""

    run_id: UUID
    experiment: str
    name: str
    state: RunState
    step_policy: int
    late_policy: int
    created_at: datetime
    ended_at: datetime | None
    heartbeat_at: datetime | None
    attempts: tuple[Attempt, ...]
