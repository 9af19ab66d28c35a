"""The identity of series."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

SERIES_PER_RUN_MAX: Final = 1_000_000
"""Series of a run, all keys and ranks: 10,000 ranks of 100 keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesWanted:
    """Series whose ids are asked for: columns of equal length."""

    run_ids: list[UUID]
    ranks: list[int]
    keys: list[str]
