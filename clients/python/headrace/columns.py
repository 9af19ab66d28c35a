"""Points read from a gateway, as numpy columns.

Works with every protobuf from 5.29: where a repeated field cannot be read by
numpy at once (before 7.34), it is read element by element.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from headrace.v1 import metric_service_pb2 as pb

if TYPE_CHECKING:
    import pandas
    import polars


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesColumns:
    """The points of one series, ascending in step.

    Attributes:
        key: the metric's key.
        rank: of the process that logged them; -1 when aggregated over ranks.
        attempt: of all the points, in reads that keep attempts apart
            (`include_hidden`, `follow`); else 0.
        step: int64[n].
        time: datetime64[us][n], UTC.
        value: float64[n].
    """

    key: str
    rank: int
    attempt: int
    step: NDArray[np.int64]
    time: NDArray[np.datetime64]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        return f"<{self.key!r} rank {self.rank}: {len(self)} points>"


class Columns:
    """What a read returned: series in order of (key, rank), and their points as one table.

    `columns["loss"]` is the one series of a key, `columns["loss", 3]` that of a
    rank; iterating gives every series; `step`, `time`, `value` are the points of
    all series, end to end.
    """

    def __init__(self, series: Iterable[SeriesColumns]) -> None:
        self.series: tuple[SeriesColumns, ...] = tuple(series)

    def __len__(self) -> int:
        """Return how many series there are."""
        return len(self.series)

    def __iter__(self) -> Iterator[SeriesColumns]:
        return iter(self.series)

    def __getitem__(self, name: str | tuple[str, int]) -> SeriesColumns:
        """Return a series by key, or by (key, rank).

        Raises:
            KeyError: there is none, or several: a key with several ranks or
                attempts.
        """
        if isinstance(name, str):
            found = [series for series in self.series if series.key == name]
        else:
            found = [series for series in self.series if (series.key, series.rank) == name]
        if len(found) == 1:
            return found[0]
        if not found:
            raise KeyError(name)
        several = [(series.key, series.rank, series.attempt) for series in found[:4]]
        raise KeyError(f"{name!r} names {len(found)} series (key, rank, attempt): {several}")

    def __repr__(self) -> str:
        return f"<Columns: {len(self.series)} series, {len(self.step)} points>"

    @cached_property
    def step(self) -> NDArray[np.int64]:
        """The steps: int64[n]."""
        return _concatenated([series.step for series in self.series], np.int64)

    @cached_property
    def time(self) -> NDArray[np.datetime64]:
        """The times: datetime64[us][n], UTC."""
        return _concatenated([series.time for series in self.series], "datetime64[us]")

    @cached_property
    def value(self) -> NDArray[np.float64]:
        """The values: float64[n]."""
        return _concatenated([series.value for series in self.series], np.float64)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a DataFrame: key (categorical), rank, attempt where kept apart, step, time, value.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        import pandas as pd  # noqa: PLC0415 - optional

        codes, keys = self._key_codes()
        table = self._table()
        return pd.DataFrame({"key": pd.Categorical.from_codes(codes, keys), **table})

    def to_polars(self) -> "polars.DataFrame":
        """Return a DataFrame: key (categorical), rank, attempt where kept apart, step, time, value.

        Raises:
            ModuleNotFoundError: polars is not installed.
        """
        import polars as pl  # noqa: PLC0415 - optional

        codes, keys = self._key_codes()
        names = pl.Series("key", keys, dtype=pl.String).gather(codes)
        return pl.DataFrame({"key": names.cast(pl.Categorical), **self._table()})

    def _key_codes(self) -> tuple[NDArray[np.int32], list[str]]:
        """Return the key of each point as a place in a list of the keys."""
        places: dict[str, int] = {}
        for series in self.series:
            places.setdefault(series.key, len(places))
        codes = np.array([places[series.key] for series in self.series], np.int32)
        return np.repeat(codes, self._lengths), list(places)

    def _table(self) -> dict[str, NDArray[Any]]:
        table: dict[str, NDArray[Any]] = {"rank": self._repeated("rank")}
        if any(series.attempt for series in self.series):
            table["attempt"] = self._repeated("attempt")
        return {**table, "step": self.step, "time": self.time, "value": self.value}

    def _repeated(self, name: str) -> NDArray[np.int32]:
        values = np.array([getattr(series, name) for series in self.series], np.int32)
        return np.repeat(values, self._lengths)

    @property
    def _lengths(self) -> list[int]:
        return [len(series) for series in self.series]


def from_message(message: pb.SeriesColumns) -> SeriesColumns:
    """Return a message's points."""
    return SeriesColumns(
        key=message.key,
        rank=message.rank,
        attempt=message.attempt,
        step=_array(message.step, np.int64),
        time=_array(message.time_unix_us, np.int64).view("datetime64[us]"),
        value=_array(message.value, np.float64),
    )


def join(messages: Iterable[pb.SeriesColumns]) -> Iterator[SeriesColumns]:
    """Yield the series of a read, whose messages come series by series."""
    parts: list[SeriesColumns] = []
    for message in messages:
        part = from_message(message)
        if parts and _name(parts[0]) != _name(part):
            yield _joined(parts)
            parts = []
        parts.append(part)
    if parts:
        yield _joined(parts)


def _name(part: SeriesColumns) -> tuple[str, int, int]:
    return part.key, part.rank, part.attempt


def _joined(parts: list[SeriesColumns]) -> SeriesColumns:
    if len(parts) == 1:
        return parts[0]
    return SeriesColumns(
        key=parts[0].key,
        rank=parts[0].rank,
        attempt=parts[0].attempt,
        step=np.concatenate([part.step for part in parts]),
        time=np.concatenate([part.time for part in parts]),
        value=np.concatenate([part.value for part in parts]),
    )


def _concatenated(columns: list[NDArray[Any]], dtype: DTypeLike) -> NDArray[Any]:
    return np.concatenate(columns) if columns else np.empty(0, dtype)


def _array(field: Any, dtype: DTypeLike) -> NDArray[Any]:
    """Return a repeated field as an array of its own."""
    if hasattr(field, "__array__"):
        return np.asarray(field, dtype)
    return np.fromiter(field, dtype, len(field))
