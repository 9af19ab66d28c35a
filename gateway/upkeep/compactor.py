"""Merges small chunks in the background, at a bounded share of its time.

One pass looks at runs that have been left alone for a while, the longest first,
and merges what is worth it: the newest chunks of a run that goes on, all chunks of
one that has ended. After each statement the compactor rests in proportion to what
it took: it is slow when the database is. Several compactors share the work; where
one stopped, the next goes on.
"""

from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from gateway.domain.compaction import (
    BATCH_CHUNKS_MAX,
    LOOKS,
    LooseGroup,
    batches,
    is_overrun,
    worth_merging,
)
from gateway.ingest.merge import merge
from gateway.store.compaction import CompactionStore
from gateway.telemetry import METRICS
from gateway.upkeep.throttle import Throttle

_RUNS_PER_PASS: Final = 100
_SERIES_PER_PAGE: Final = 200


@dataclass(slots=True, kw_only=True)
class Compacted:
    """What a pass did."""

    runs: int = 0
    chunks_before: int = 0
    chunks_after: int = 0
    points: int = 0


class Compactor:
    """Compacts the runs of one database; `compact_once` is called again and again."""

    def __init__(self, store: CompactionStore, *, idle_s: float, throttle: Throttle) -> None:
        """Prepare.

        Args:
            store: the chunks.
            idle_s: for how long a run is left alone between two looks.
            throttle: does each statement and rests.
        """
        self._store = store
        self._idle_s = idle_s
        self._throttled = throttle

    async def compact_once(self) -> Compacted:
        """Look at the runs that are due, at most a hundred.

        Raises:
            StoreUnavailableError: what was done stays done.
        """
        done = Compacted()
        due = await self._throttled(self._store.due(idle_s=self._idle_s, count_max=_RUNS_PER_PASS))
        for run_id in due:
            await self._compact_run(run_id, done)
        return done

    async def _compact_run(self, run_id: UUID, done: Compacted) -> None:
        settled = await self._throttled(self._store.settle(run_id, idle_s=self._idle_s))
        if settled is None or not (settled.news or settled.ended):
            return
        async for page in self._store.series_pages(run_id, count=_SERIES_PER_PAGE):
            groups = await self._loose_groups(run_id, page, run_ended=settled.ended)
            chosen = [group for group in groups if worth_merging(group, run_ended=settled.ended)]
            for batch in batches(chosen):
                if not await self._merge(run_id, batch, done):
                    return
        if settled.ended:
            await self._store.mark_compacted(run_id)
            METRICS.runs_compacted.inc()
            done.runs += 1

    async def _loose_groups(
        self, run_id: UUID, series_ids: list[int], *, run_ended: bool
    ) -> list[LooseGroup]:
        found: list[LooseGroup] = []
        for newest in (None,) if run_ended else LOOKS:
            look = self._store.loose_groups(run_id, series_ids, newest=newest)
            groups = await self._throttled(look)
            found += [group for group in groups if not is_overrun(group, newest)]
            series_ids = [group.series_id for group in groups if is_overrun(group, newest)]
            if not series_ids:
                break
        return found

    async def _merge(self, run_id: UUID, batch: list[LooseGroup], done: Compacted) -> bool:
        """Merge a batch; False when the run is locked: it is left for later."""
        while True:
            written = await self._throttled(self._store.rewrite(run_id, batch, merge))
            if written is None:
                return False
            done.chunks_before += written.chunks_before
            done.chunks_after += written.chunks_after
            done.points += written.points
            METRICS.chunks_merged.inc(written.chunks_before)
            METRICS.chunks_made_by_merging.inc(written.chunks_after)
            if len(batch) > 1 or written.chunks_before < BATCH_CHUNKS_MAX:
                return True
            # A group of more than one batch goes on where this one ended.
            batch = [replace(batch[0], first_step=written.last_first_step)]
