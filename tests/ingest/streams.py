"""Sessions and batches for tests of the ingest path, without a network."""

from uuid import UUID, uuid4

import numpy as np

from gateway.domain.flush import Counters, OpenedWriter, SummaryRows
from gateway.ingest.coalescer import Portion
from gateway.ingest.session import Batch, Session

# A point as tests think of it: key index, step, time in µs, value.
Point = tuple[int, int, int, float]


def opened(
    *, run_id: UUID | None = None, attempt: int = 1, rejects_late: bool = False, writer_no: int = 7
) -> OpenedWriter:
    """Return what the store says of a new writer."""
    return OpenedWriter(
        run_id=run_id or uuid4(),
        writer_id=uuid4(),
        writer_no=writer_no,
        rank=0,
        attempt=attempt,
        epoch=1,
        committed_sequence=0,
        finished=False,
        rejects_late=rejects_late,
        counters=Counters(),
        rejections=(),
        summaries=SummaryRows(),
    )


def session(keys: int = 3, **arguments: object) -> Session:
    """Return a session whose keys `k0`, `k1`, … have the series ids 100, 101, …."""
    made = Session(opened(**arguments), on_change=lambda: None)  # type: ignore[arg-type]
    for index in range(keys):
        made.keys.define(index, f"k{index}")
        made.resolve(index, 100 + index)
    return made


def batch(first_sequence: int, points: list[Point], *, record_count: int = 1) -> Batch:
    """Return a batch of points."""
    return Batch(
        first_sequence=first_sequence,
        record_count=record_count,
        series_index=np.array([point[0] for point in points], np.uint32),
        step=np.array([point[1] for point in points], np.int64),
        time=np.array([point[2] for point in points], np.int64),
        value=np.array([point[3] for point in points], np.float64),
        size_bytes=28 * len(points),
        arrived=0.0,
    )


def portion(of: Session, *batches: Batch) -> Portion:
    """Return a portion of batches that the session has not seen."""
    return Portion(
        session=of,
        batches=batches,
        points=sum(len(item.value) for item in batches),
        size_bytes=sum(item.size_bytes for item in batches),
    )
