"""The hand-written encoder agrees with the generated class."""

import struct

from headrace import limits
from headrace.batches import write_request
from headrace.record import RecordColumns
from headrace.v1.metric_service_pb2 import WriteMetricsRequest
from hypothesis import given, settings
from hypothesis import strategies as st

_point = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
)


@settings(deadline=None)
@given(
    first=st.integers(1, 2**64 - 1),
    records=st.integers(1, 2**32 - 1),
    points=st.lists(_point, max_size=200),
)
def test_a_batch_decodes_to_what_was_encoded(
    first: int, records: int, points: list[tuple[int, int, int, float]]
) -> None:
    count = len(points)
    data = write_request(
        RecordColumns(
            first_sequence=first,
            record_count=records,
            point_count=count,
            series_index=struct.pack(f"<{count}I", *(p[0] for p in points)),
            step=struct.pack(f"<{count}q", *(p[1] for p in points)),
            time_unix_us=struct.pack(f"<{count}q", *(p[2] for p in points)),
            value=struct.pack(f"<{count}d", *(p[3] for p in points)),
        )
    )
    request = WriteMetricsRequest.FromString(data)
    batch = request.batch
    assert (batch.first_sequence, batch.record_count) == (first, records)
    decoded = zip(batch.series_index, batch.step, batch.time_unix_us, batch.value, strict=True)
    assert list(decoded) == points
    assert request.SerializeToString() == data


def test_the_largest_batch_fits_a_message() -> None:
    largest = limits.BATCH_POINTS_MAX
    data = write_request(
        RecordColumns(
            first_sequence=2**63,
            record_count=1,
            point_count=largest,
            series_index=bytes(4 * largest),
            step=bytes(8 * largest),
            time_unix_us=bytes(8 * largest),
            value=bytes(8 * largest),
        )
    )
    assert len(data) < limits.MESSAGE_BYTES_MAX


def test_the_client_checks_the_limits_of_the_gateway() -> None:
    from gateway.domain import limits as contract
    from gateway.domain import metadata

    names = [name for name in vars(limits) if name.isupper()]
    assert len(names) >= 14
    known = vars(metadata) | vars(contract)
    assert {name: vars(limits)[name] for name in names} == {name: known[name] for name in names}
