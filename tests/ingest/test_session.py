"""A session admits in sequence, discards duplicates, and refuses what breaks the contract."""

import tracemalloc

import pytest
from headrace.v1.metric_service_pb2 import MetadataBatch, WriteMetricsRequest
from headrace.v1.run_service_pb2 import MetadataEntry, Tag
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.limits import KEY_BYTES_MAX, SEQUENCE_MAX
from gateway.ingest.coalescer import Coalescer
from gateway.ingest.session import Batch, Ending, Session
from gateway.rpc.wire import decode
from tests.ingest.streams import batch, session

_POINT = (0, 1, 1_700_000_000_000_000, 1.0)
_WIDE = {ord("0") + digit: 0x1F680 + digit for digit in range(10)}  # of four bytes


def _refusal(action: object, *arguments: object) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        action(*arguments)  # type: ignore[operator]
    return caught.value


def test_batches_in_sequence_are_admitted() -> None:
    owner = session()
    assert owner.admit(batch(1, [_POINT], record_count=3))
    assert owner.admit(batch(4, [_POINT]))
    assert [item.first_sequence for item in owner.pending] == [1, 4]


def test_a_resent_batch_is_discarded_silently() -> None:
    owner = session()
    owner.admit(batch(1, [_POINT], record_count=3))
    assert not owner.admit(batch(1, [_POINT], record_count=3))
    assert not owner.admit(batch(2, [_POINT]))
    assert len(owner.pending) == 1


@pytest.mark.parametrize(("first", "count"), [(5, 1), (3, 2), (0, 1), (0, 9)])
def test_a_gap_or_a_straddling_batch_names_what_was_expected(first: int, count: int) -> None:
    owner = session()
    owner.admit(batch(1, [_POINT], record_count=3))
    error = _refusal(owner.admit, batch(first, [_POINT], record_count=count))
    assert error.reason is Reason.SEQUENCE_GAP
    assert error.metadata == {
        "field": "batch.first_sequence",
        "value": str(first),
        "limit": "4",
    }
    assert owner.admit(batch(4, [_POINT])), "the session goes on as if nothing had been sent"


def test_an_undefined_index_names_itself() -> None:
    error = _refusal(session(3).admit, batch(1, [(3, *_POINT[1:])]))
    assert error.reason is Reason.UNKNOWN_KEY_INDEX
    assert error.metadata["value"] == "3"


def test_a_hole_in_the_dictionary_is_undefined() -> None:
    owner = session(1)
    owner.keys.define(5, "k5")
    assert _refusal(owner.admit, batch(1, [(3, *_POINT[1:])])).metadata["value"] == "3"


def test_an_index_keeps_its_key() -> None:
    owner = session(1)
    owner.keys.define(0, "k0")
    assert _refusal(owner.keys.define, 0, "other").reason is Reason.FIELD_INVALID
    assert _refusal(owner.keys.define, 1, "k0").reason is Reason.FIELD_INVALID
    assert _refusal(owner.keys.define, 100_000, "far").reason is Reason.LIMIT_EXCEEDED


def test_a_key_that_is_too_long_is_refused_and_not_kept() -> None:
    owner = session(1)
    tracemalloc.start()
    for index in range(1, 33):
        owner.keys.define(index, "k" * 2**20 + str(index))
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 2**17
    owner.keys.define(1, "k" * 2**20 + "1")  # what was defined may be said again
    assert owner.keys.refusal(32) == (
        Reason.KEY_INVALID,
        "the key has 1048578 characters; the limit is 250",
    )
    # Nothing that is cut off is as long as a key may be.
    owner.keys.define(33, "k" * 250)
    assert _refusal(owner.keys.define, 33, "k" * 251).reason is Reason.FIELD_INVALID


def test_the_keys_of_a_stream_are_bounded_in_bytes() -> None:
    keys = session(0).keys
    longest = KEY_BYTES_MAX // 1_000  # 250 characters of four bytes
    for index in range(longest):
        keys.define(index, f"{index:0>250}".translate(_WIDE))
    error = _refusal(keys.define, longest, "\N{FLYING SAUCER}" * 250)
    assert error.reason is Reason.LIMIT_EXCEEDED
    assert error.metadata == {
        "field": "keys.key",
        "value": str(1_000 * (longest + 1)),
        "limit": str(KEY_BYTES_MAX),
    }
    keys.define(longest, "short")  # the stream's fate is its caller's to decide


def test_nothing_is_admitted_after_finish() -> None:
    owner = session()
    owner.admit(batch(1, [_POINT]))
    owner.finish(1)
    assert _refusal(owner.admit, batch(2, [_POINT])).reason is Reason.WRITER_FINISHED


def test_finish_must_name_the_last_record() -> None:
    owner = session()
    owner.admit(batch(1, [_POINT]))
    assert _refusal(owner.finish, 2).reason is Reason.SEQUENCE_GAP


def test_resync_only_goes_forward_and_only_first() -> None:
    owner = session()
    assert _refusal(owner.check_resync, 1).reason is Reason.SEQUENCE_GAP
    owner.check_resync(9)
    owner.resynced(9)
    assert owner.counters.lost_records == 8
    assert owner.admit(batch(9, [_POINT]))
    assert _refusal(owner.check_resync, 20).reason is Reason.SEQUENCE_GAP


def test_no_record_is_beyond_what_the_store_can_count() -> None:
    owner = session()
    error = _refusal(owner.check_resync, SEQUENCE_MAX + 1)
    assert (error.reason, error.metadata) == (
        Reason.FIELD_INVALID,
        {
            "field": "resync.first_sequence",
            "value": str(SEQUENCE_MAX + 1),
            "limit": str(SEQUENCE_MAX),
        },
    )
    owner.check_resync(SEQUENCE_MAX)
    owner.resynced(SEQUENCE_MAX)
    error = _refusal(owner.admit, batch(SEQUENCE_MAX, [_POINT], record_count=2))
    assert (error.reason, error.metadata["field"]) == (Reason.FIELD_INVALID, "batch.record_count")
    assert owner.admit(batch(SEQUENCE_MAX, [_POINT]))


def test_a_draining_session_ends_when_everything_is_committed() -> None:
    owner = session()
    owner.admit(batch(1, [_POINT]))
    owner.drain()
    assert not owner.ending
    assert owner.take_reconnect()
    owner.admit(batch(2, [_POINT]))
    owner.pending.clear()
    owner.committed(1, 28)
    assert not owner.ending  # refused content is committed batch by batch
    owner.committed(2, 28)
    assert owner.ending == Ending(error=None)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), min_size=1, max_size=60),
    st.integers(1, 200),
)
def test_flushes_take_whole_prefixes_in_turn_and_keep_to_the_cap(
    arrivals: list[tuple[int, int]], points_max: int
) -> None:
    sessions = [session(1) for _ in range(5)]
    coalescer = Coalescer(points_max=points_max)
    sequence = [0] * 5
    flushed: dict[int, list[int]] = {number: [] for number in range(5)}
    waiting: dict[int, int] = {}

    def flush() -> None:
        portions = coalescer.take()
        assert len({id(part.session) for part in portions}) == len(portions)
        total = sum(part.points for part in portions)
        assert total <= points_max or len(portions) == len(portions[0].batches) == 1
        served = {sessions.index(part.session) for part in portions}
        for number in list(waiting):
            waiting[number] = 0 if number in served else waiting[number] + 1
            # At most one flush goes to each of the four others first.
            assert waiting[number] <= 4
            if not sessions[number].pending:
                del waiting[number]
        for part in portions:
            flushed[sessions.index(part.session)] += [item.first_sequence for item in part.batches]
            coalescer.release(part.session)

    for place, (number, points) in enumerate(arrivals):
        sequence[number] += 1
        owner: Session = sessions[number]
        owner.admit(batch(sequence[number], [_POINT] * points))
        coalescer.admitted(owner, points)
        waiting.setdefault(number, 0)
        if place % 3 == 2:
            flush()
    while coalescer.ready:
        flush()
    assert coalescer.pending_points == 0
    assert flushed == {n: list(range(1, sequence[n] + 1)) for n in range(5)}


def test_runs_that_reject_late_points_take_turns_with_the_others() -> None:
    rejecting = [session(1, rejects_late=True) for _ in range(2)]
    ordinary = session(1)
    coalescer = Coalescer(points_max=1)
    served = []
    for sequence in range(1, 9):
        for owner in (*rejecting, ordinary):  # each always has more
            owner.admit(batch(sequence, [_POINT]))
            coalescer.admitted(owner, 1)
        (portion,) = coalescer.take()
        coalescer.release(portion.session)
        served.append(portion.session is ordinary)
    assert served == [False, True] * 4


def test_a_flush_takes_a_bounded_part_of_what_waits_without_points() -> None:
    """Every entry of it is a row, whatever its message weighs beside a batch of points."""
    entries = [MetadataEntry(tag=Tag(key=f"t{number}", value="")) for number in range(1_000)]
    owners = [session(1) for _ in range(8)]
    coalescer = Coalescer(points_max=262_144)
    for sequence in range(1, 11):
        for owner in owners:
            said = MetadataBatch(first_sequence=sequence, record_count=1, entries=entries)
            batch_ = decode(WriteMetricsRequest(metadata=said).SerializeToString())
            assert isinstance(batch_, Batch)
            assert batch_.size_bytes > 200 * len(entries)
            owner.admit(batch_)
            coalescer.admitted(owner, 0)
    flushed = 0
    while portions := coalescer.take():
        batches = sum(len(part.batches) for part in portions)
        assert batches <= 10
        flushed += batches
        for part in portions:
            coalescer.release(part.session)
    assert flushed == 80
