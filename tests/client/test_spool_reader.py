"""The spool reader yields only what was written, whatever happened to the file."""

import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from headrace.limits import BATCH_POINTS_MAX
from headrace.record import (
    RECORD_BYTES_MIN,
    MetadataRecords,
    RecordColumns,
    RecordLayout,
    crc_seed,
    encode_metadata,
)
from headrace.spool_files import decode_keys, encode_key, segment_path
from headrace.spool_reader import SpoolReader
from hypothesis import given, settings
from hypothesis import strategies as st

INCARNATION = "ab" * 16
SEED = crc_seed(INCARNATION)

Record = tuple[int, int, tuple[float, ...]]
"""Time, step, values; without values, time and step do not reach columns and are 0."""

_values = st.lists(st.floats(allow_nan=False), max_size=5).map(tuple)
_records = st.lists(
    st.tuples(st.integers(0, 2**50), st.integers(-(2**62), 2**62), _values).map(
        lambda record: record if record[2] else (0, 0, ())
    ),
    min_size=1,
    max_size=30,
)
_cuts = st.sets(st.integers(2, 30))


def write_segments(directory: Path, records: Sequence[Record], cuts: set[int]) -> None:
    """Writes records as segments; one begins at each sequence in `cuts`."""
    path = segment_path(directory, 1)
    for sequence, (time_us, step, values) in enumerate(records, start=1):
        if sequence in cuts:
            path = segment_path(directory, sequence)
        layout = RecordLayout(range(len(values)))
        with path.open("ab") as file:
            file.write(layout.encode(sequence, time_us, step, values, SEED))


def open_reader(directory: Path, sequence: int = 1) -> SpoolReader:
    """A reader that stands before a record."""
    reader = SpoolReader(directory, INCARNATION)
    reader.seek(sequence, ended=True)
    return reader


def read_columns(
    reader: SpoolReader, points_max: int = BATCH_POINTS_MAX, *, ended: bool = True, **limit: int
) -> RecordColumns | None:
    """The next records, which are points."""
    records = reader.read(points_max, ended=ended, **limit)
    assert not isinstance(records, MetadataRecords)
    return records


def read_each(reader: SpoolReader) -> dict[int, Record]:
    """Reads record by record to the end; lost ones look like records without points."""
    found: dict[int, Record] = {}
    while True:
        columns = read_columns(reader, last_sequence=reader.next_sequence)
        if columns is None:
            return found
        for lost in range(columns.first_sequence, columns.last_sequence):
            found[lost] = (0, 0, ())
        found[columns.last_sequence] = _record(columns)


def _record(columns: RecordColumns) -> Record:
    if not columns.point_count:
        return (0, 0, ())
    (time_us,) = set(struct.unpack(f"<{columns.point_count}q", columns.time_unix_us))
    (step,) = set(struct.unpack(f"<{columns.point_count}q", columns.step))
    return time_us, step, struct.unpack(f"<{columns.point_count}d", columns.value)


@settings(deadline=None)
@given(records=_records, cuts=_cuts, start=st.integers(1, 31))
def test_reading_from_any_record_gives_the_rest_as_written(
    records: list[Record], cuts: set[int], start: int
) -> None:
    with TemporaryDirectory() as name:
        write_segments(Path(name), records, cuts)
        reader = open_reader(Path(name), start)
        assert reader.next_sequence == min(start, len(records) + 1)
        expected = dict(enumerate(records, start=1))
        assert read_each(reader) == {n: r for n, r in expected.items() if n >= start}
        assert reader.damages == []
        reader.close()


@settings(deadline=None)
@given(records=_records, cuts=_cuts, points_max=st.integers(5, 40))
def test_batches_hold_the_same_columns_however_they_are_cut(
    records: list[Record], cuts: set[int], points_max: int
) -> None:
    with TemporaryDirectory() as name:
        write_segments(Path(name), records, cuts)
        reader = open_reader(Path(name))
        batches = []
        while (columns := read_columns(reader, points_max)) is not None:
            assert columns.point_count <= points_max
            batches.append(columns)
        reader.close()
    values = b"".join(batch.value for batch in batches)
    assert values == b"".join(struct.pack(f"<{len(v)}d", *v) for _, _, v in records)
    steps = b"".join(batch.step for batch in batches)
    assert steps == b"".join(struct.pack("<q", step) * len(v) for _, step, v in records)
    assert sum(batch.record_count for batch in batches) == len(records)
    assert [b.first_sequence for b in batches[1:]] == [b.last_sequence + 1 for b in batches[:-1]]


@settings(max_examples=300, deadline=None)
@given(records=_records, cuts=_cuts, data=st.data())
def test_damage_never_crashes_and_never_yields_what_was_not_written(
    records: list[Record], cuts: set[int], data: st.DataObject
) -> None:
    with TemporaryDirectory() as name:
        directory = Path(name)
        write_segments(directory, records, cuts)
        names = sorted(path.name for path in directory.iterdir())
        for name_of_segment in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
            path = directory / name_of_segment
            content = bytearray(path.read_bytes())
            kind = data.draw(st.sampled_from(["truncate", "flip", "zero", "insert", "remove"]))
            offset = data.draw(st.integers(0, max(0, len(content) - 1)))
            length = data.draw(st.integers(1, 64))
            if kind == "truncate":
                del content[offset:]
            elif kind == "flip" and content:
                content[offset] ^= 1 << data.draw(st.integers(0, 7))
            elif kind == "zero":
                content[offset : offset + length] = bytes(len(content[offset : offset + length]))
            elif kind == "insert":
                content[offset:offset] = data.draw(st.binary(min_size=1, max_size=64))
            else:
                del content[offset : offset + length]
            path.write_bytes(content)
        reader = open_reader(directory)
        found = read_each(reader)
        reader.close()
    # Sequences stay gapless; each is as written or lost (without points).
    assert sorted(found) == list(range(1, len(found) + 1))
    assert len(found) <= len(records)
    lost = 0
    for sequence, record in found.items():
        written = records[sequence - 1]
        assert record in {written, (0, 0, ())}
        lost += record != written
    # Nothing vanished silently: whatever differs from what was written was reported.
    assert lost <= sum(damage.lost_records for damage in reader.damages)
    last_cut = max([cut for cut in cuts if cut <= len(records)], default=1)
    if len(found) < len(records):
        assert reader.damages or len(found) >= last_cut - 1


@settings(deadline=None)
@given(garbage=st.binary(max_size=4_000))
def test_garbage_is_no_record(garbage: bytes) -> None:
    with TemporaryDirectory() as name:
        segment_path(Path(name), 1).write_bytes(garbage)
        reader = open_reader(Path(name))
        assert reader.read(BATCH_POINTS_MAX, ended=True) is None
        assert bool(reader.damages) == bool(garbage)
        reader.close()


def test_a_torn_last_record_is_dropped_and_reported(tmp_path: Path) -> None:
    write_segments(tmp_path, [(1, 1, (1.0,)), (2, 2, (2.0,))], set())
    path = segment_path(tmp_path, 1)
    whole = RECORD_BYTES_MIN + 12
    path.write_bytes(path.read_bytes()[: whole + 10])
    reader = open_reader(tmp_path)
    assert read_each(reader) == {1: (1, 1, (1.0,))}
    (damage,) = reader.damages
    assert (damage.file, damage.offset, damage.skipped_bytes) == (path.name, whole, 10)
    assert damage.lost_records == 0


def test_a_record_of_another_spool_is_no_record(tmp_path: Path) -> None:
    other = RecordLayout([0]).encode(2, 5, 5, (5.0,), crc_seed("cd" * 16))
    write_segments(tmp_path, [(1, 1, (1.0,))], set())
    with segment_path(tmp_path, 1).open("ab") as file:
        file.write(other)
    reader = open_reader(tmp_path)
    assert read_each(reader) == {1: (1, 1, (1.0,))}


def test_half_of_a_write_is_waited_for_while_the_trainer_lives(tmp_path: Path) -> None:
    record = RecordLayout([0]).encode(1, 5, 7, (5.0,), SEED)
    path = segment_path(tmp_path, 1)
    path.write_bytes(record[:20])
    reader = SpoolReader(tmp_path, INCARNATION)
    reader.seek(1, ended=False)
    for _ in range(20):
        assert reader.read(BATCH_POINTS_MAX, ended=False) is None
    path.write_bytes(record)
    columns = read_columns(reader, ended=False)
    assert columns is not None
    assert _record(columns) == (5, 7, (5.0,))
    assert reader.damages == []


def test_damage_in_a_living_spool_does_not_stop_what_comes_after(tmp_path: Path) -> None:
    records: list[Record] = [(n, n, (float(n),)) for n in range(1, 11)]
    write_segments(tmp_path, records, set())
    path = segment_path(tmp_path, 1)
    content = bytearray(path.read_bytes())
    content[3 * (RECORD_BYTES_MIN + 12) + 20] ^= 0xFF
    path.write_bytes(content)
    reader = SpoolReader(tmp_path, INCARNATION)
    reader.seek(1, ended=False)
    count = 0
    for _ in range(20):
        columns = reader.read(BATCH_POINTS_MAX, ended=False)
        count += 0 if columns is None else columns.record_count
    assert count == 10
    assert [damage.lost_records for damage in reader.damages] == [1]


def test_seeking_into_lost_records_continues_with_the_asked_one(tmp_path: Path) -> None:
    records: list[Record] = [(n, n, (float(n),)) for n in range(1, 11)]
    write_segments(tmp_path, records, set())
    path = segment_path(tmp_path, 1)
    whole = RECORD_BYTES_MIN + 12
    content = bytearray(path.read_bytes())
    content[2 * whole : 6 * whole] = bytes(4 * whole)  # records 3 to 6
    path.write_bytes(content)
    reader = open_reader(tmp_path, 5)
    assert reader.next_sequence == 5
    columns = read_columns(reader)
    assert columns is not None
    assert (columns.first_sequence, columns.record_count, columns.point_count) == (5, 6, 4)


def test_trimmed_records_are_not_sought(tmp_path: Path) -> None:
    records: list[Record] = [(n, n, (float(n),)) for n in range(1, 11)]
    write_segments(tmp_path, records, {4, 8})
    reader = open_reader(tmp_path, 9)
    reader.trim(8)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [segment_path(tmp_path, 8).name]
    assert reader.seek(2, ended=True) == 8


@settings(deadline=None)
@given(
    keys=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=10),
    cut=st.integers(0, 60),
    flip=st.integers(0, 600),
)
def test_the_key_dictionary_yields_only_keys_that_were_written(
    keys: list[str], cut: int, flip: int
) -> None:
    printable = [key.encode("utf-8", "replace").decode() for key in keys]
    content = bytearray(b"".join(encode_key(n, key, SEED) for n, key in enumerate(printable)))
    assert decode_keys(bytes(content), SEED, ended=False) == (
        list(enumerate(printable)),
        len(content),
        0,
    )
    del content[max(0, len(content) - cut) :]
    if flip < len(content):
        content[flip] ^= 0x40
    entries, taken, _ = decode_keys(bytes(content), SEED, ended=True)
    assert set(entries) <= set(enumerate(printable))
    assert taken == len(content)


_points_or_entries = st.lists(
    st.one_of(_values.filter(bool), st.binary(max_size=40), st.just(bytes(300_000))),
    min_size=1,
    max_size=20,
)


@given(
    contents=_points_or_entries, cuts=_cuts, start=st.integers(1, 21), damaged=st.integers(0, 40)
)
def test_points_and_metadata_share_one_sequence_and_damage_costs_only_its_record(
    contents: list[tuple[float, ...] | bytes], cuts: set[int], start: int, damaged: int
) -> None:
    with TemporaryDirectory() as name:
        directory = Path(name)
        path = segment_path(directory, 1)
        for sequence, content in enumerate(contents, start=1):
            if sequence in cuts:
                path = segment_path(directory, sequence)
            if isinstance(content, bytes):
                record = encode_metadata(sequence, 1, 3, content, SEED)
            else:
                record = RecordLayout(range(len(content))).encode(sequence, 1, 1, content, SEED)
            if sequence == damaged:
                record = record[:-1] + bytes([record[-1] ^ 0xFF])
            with path.open("ab") as file:
                file.write(record)
        reader = open_reader(directory, start)
        found: dict[int, tuple[float, ...] | bytes] = {}
        while (
            records := reader.read(BATCH_POINTS_MAX, ended=True, last_sequence=reader.next_sequence)
        ) is not None:
            last = records.last_sequence
            if isinstance(records, MetadataRecords):
                found[last] = records.entries
            elif records.point_count:
                found[last] = struct.unpack(f"<{records.point_count}d", records.value)
        reader.close()
    expected = dict(enumerate(contents, start=1))
    assert found == {n: c for n, c in expected.items() if n >= start and n != damaged}
