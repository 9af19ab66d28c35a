"""Which chunks of a series down-sampling must open, by what their rows say of them.

The row of a chunk says its ends, its extremes and its number of points. Where
the chunks of a series do not overlap, that is enough to tell which of them may
hold a point that M4 keeps; the others are never opened, with the same outcome.
"""

from collections.abc import Mapping
from typing import Final

import asyncpg
import numpy as np
from numpy.typing import NDArray

from gateway.domain.downsampling import candidate_chunks, span_width
from gateway.domain.reads import ReadQuery
from gateway.store.chunk_rows import copy_outlines
from gateway.store.queries import load

_SQL: Final = load("reading")
_SHARE_MAX: Final = 0.5  # of the chunks; above it, opening all is as fast


async def steps_to_open(
    connection: asyncpg.Connection,
    query: ReadQuery,
    series_id: int,
    *,
    hidden: Mapping[int, int],
    first_step: int,
    last_step: int,
) -> NDArray[np.int64] | None:
    """Return the first steps of the chunks to open: int64[m]; None to open them all.

    Args:
        connection: within the read's snapshot.
        query: the read, with `max_points`.
        series_id: the series.
        hidden: from which step on attempts are hidden; empty for an exempt key.
        first_step: the least step of the series that the read will return.
        last_step: the greatest.
    """
    rows = await copy_outlines(
        connection,
        _SQL["chunk_outlines"],
        query.run_id,
        series_id,
        query.first_step,
        query.last_step,
    )
    first = rows["first_step"].astype(np.int64)
    last = rows["last_step"].astype(np.int64)
    bound = np.full(len(rows), query.last_step, np.int64)
    for attempt, cutoff in hidden.items():
        bound[rows["attempt"] == attempt] = min(query.last_step, cutoff - 1)
    seen = first <= bound
    rows, first, last, bound = rows[seen], first[seen], last[seen], bound[seen]
    begin, end = np.maximum(first, query.first_step), np.minimum(last, bound)
    count = rows["point_count"].astype(np.int64)
    # Repeats within a chunk are for the step policy, so such a chunk is opened:
    # one of irregular steps may have them, one that does not advance has.
    plain = (rows["regular"] == 1) & ((first < last) | (count == 1))
    plain &= (begin == first) & (end == last)
    apart = bool((end[:-1] < begin[1:]).all()) and bool((first[:-1] < first[1:]).all())
    if not apart or int(count[plain].sum()) <= query.max_points:
        return None
    chosen = candidate_chunks(
        begin,
        end,
        # A chunk that is opened anyway may owe its extremes to points that are not
        # returned: they must not stand in the way of another chunk's.
        np.where(plain, rows["min_value"].astype(np.float64), np.nan),
        np.where(plain, rows["max_value"].astype(np.float64), np.nan),
        first_step=first_step,
        width=span_width(first_step, last_step, query.max_points),
    )
    chosen |= ~plain
    return first[chosen] if int(chosen.sum()) <= _SHARE_MAX * len(rows) else None
