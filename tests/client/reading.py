"""Reads spools back with the client's own reader, as plain points."""

import struct
from dataclasses import dataclass
from pathlib import Path

from headrace.record import RecordColumns
from headrace.spool_files import WriterIdentity, spools
from headrace.spool_reader import KeyReader, SpoolReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point with the record it came in."""

    key: str
    step: int
    value: float


def points_of(columns: RecordColumns, keys: dict[int, str]) -> list[Point]:
    """The points of some records."""
    count = columns.point_count
    indexes = struct.unpack(f"<{count}I", columns.series_index)
    steps = struct.unpack(f"<{count}q", columns.step)
    values = struct.unpack(f"<{count}d", columns.value)
    return [
        Point(key=keys[index], step=step, value=value)
        for index, step, value in zip(indexes, steps, values, strict=True)
    ]


def read_spool(directory: Path) -> list[Point]:
    """All points of a spool, in the order they were logged; asserts that nothing is damaged."""
    identity = WriterIdentity.read(directory)
    reader = SpoolReader(directory, identity.incarnation)
    keys = KeyReader(directory, identity.incarnation)
    reader.seek(1, ended=True)
    points = []
    while (records := reader.read(8_192, ended=True)) is not None:
        keys.read(ended=True)
        if isinstance(records, RecordColumns):
            points += points_of(records, keys.keys)
    reader.close()
    keys.close()
    assert reader.damages == []
    return points


def only_spool(root: Path) -> Path:
    """The one spool in a directory."""
    (spool,) = spools(root)
    return spool
