"""From the points of many small chunks to few full ones. Pure numpy.

Called by the compactor with the points it has taken out of one run's chunks; the
rows it puts back are cut and packed as those of a flush.
"""

from typing import Final

import numpy as np

from gateway.domain.compaction import LoosePoints, MergedChunks
from gateway.ingest.chunks import Points, PortionIdentity, SlotIdentity, blocks, cut, pack, sort

_MERGED: Final = 0
"""The last_sequence of a merged chunk: below every cursor, so that no follower takes it for new."""


def merge(loose: LoosePoints) -> MergedChunks:
    """Return chunks with exactly these points, as few as their limits allow."""
    groups = len(loose.series_id)
    group = loose.group
    slot = group.astype(np.uint16) if groups <= 65_536 else group.astype(np.uint32)
    ordered = sort(
        Points(slot=slot, step=loose.step, time=loose.time_us, value=loose.value),
        blocks([groups], [len(slot)]),
    )
    pieces = cut(ordered)
    rows = pack(
        ordered,
        pieces,
        SlotIdentity(portion=np.arange(groups, dtype=np.int32), series_id=loose.series_id),
        PortionIdentity(
            run_id=np.full(groups, np.void(loose.run_id.bytes)),
            writer_no=loose.writer_no,
            last_sequence=np.full(groups, _MERGED, np.int64),
            attempt=loose.attempt,
        ),
    )
    return MergedChunks(copy_pieces=rows, chunk_count=len(pieces.starts))
