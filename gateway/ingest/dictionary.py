"""A stream's key dictionary: key index → key → series id → place in the summary.

Pure. Indexes come from the client, series ids from the store, places are given
out in order of first commit. Refused keys keep their index, so that their
points can be rejected and counted.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.limits import KEY_BYTES_MAX, KEY_CHARACTERS_MAX, KEYS_MAX

UNDEFINED: Final = -2
REFUSED: Final = -1
UNRESOLVED: Final = 0

_FIRST_SIZE = 16


class KeyDictionary:
    """The keys of one stream.

    Attributes:
        series_ids: int64 by key index: a series id (> 0), UNRESOLVED, REFUSED or
            UNDEFINED.
        positions: int32 by key index: place in the writer's summary, -1 for none.
        size: one more than the greatest defined index.
        unresolved: how many indexes are UNRESOLVED.
    """

    __slots__ = (
        "_by_key",
        "_defined",
        "_key_bytes",
        "_keys",
        "_refusals",
        "positions",
        "series_ids",
        "size",
        "unresolved",
    )

    def __init__(self) -> None:
        self._keys: list[str | None] = []
        self._by_key: dict[str, int] = {}
        self._defined = 0
        self._key_bytes = 0
        self._refusals: dict[int, tuple[Reason, str]] = {}
        self.series_ids: NDArray[np.int64] = np.full(_FIRST_SIZE, UNDEFINED, np.int64)
        self.positions: NDArray[np.int32] = np.full(_FIRST_SIZE, -1, np.int32)
        self.size = 0
        self.unresolved = 0

    def define(self, index: int, key: str) -> None:
        """Define one index.

        Raises:
            HeadraceError: FIELD_INVALID or LIMIT_EXCEEDED when the definition breaks
                the contract. A key that is merely bad is kept as refused.
        """
        if index >= KEYS_MAX:
            raise HeadraceError(
                Reason.LIMIT_EXCEEDED,
                f"keys.index {index} is not below {KEYS_MAX}, the most keys a writer may have",
                field="keys.index",
                value=index,
                limit=KEYS_MAX,
            )
        kept = key[: KEY_CHARACTERS_MAX + 1]  # shows that a key is too long; the rest tells nothing
        known = self._keys[index] if index < self.size else None
        if known is not None:
            if known != kept:
                raise HeadraceError(
                    Reason.FIELD_INVALID,
                    f"keys.index {index} is {known[:80]!r} already and cannot become {key[:80]!r}",
                    field="keys.key",
                    value=key,
                )
            return
        if (other := self._by_key.get(kept)) is not None:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"the key {key[:80]!r} has the index {other}; it cannot have {index} as well",
                field="keys.index",
                value=index,
            )
        key_bytes = self._key_bytes + len(kept.encode())
        if key_bytes > KEY_BYTES_MAX:
            raise HeadraceError(
                Reason.LIMIT_EXCEEDED,
                f"the keys of a stream have at most {KEY_BYTES_MAX} bytes in all; "
                f"with keys.index {index} they have {key_bytes}",
                field="keys.key",
                value=key_bytes,
                limit=KEY_BYTES_MAX,
            )
        self._grow(index + 1)
        self._keys[index] = kept
        self._key_bytes = key_bytes
        self._defined += 1
        fault = key_fault(key)
        if fault is None:
            self._by_key[key] = index
            self.series_ids[index] = UNRESOLVED
            self.unresolved += 1
        else:
            self.refuse(index, Reason.KEY_INVALID, fault)

    def refuse(self, index: int, reason: Reason, detail: str) -> None:
        """Reject the points of `index` from now on."""
        self._settle(index)
        self.series_ids[index] = REFUSED
        self._refusals[index] = (reason, detail)

    def resolve(self, index: int, series_id: int, position: int) -> None:
        """Note the store's id of a key, and its place in the summary or -1."""
        self._settle(index)
        self.series_ids[index] = series_id
        self.positions[index] = position

    def forget_unused(self) -> None:
        """Forget the ids of keys that have no place in the summary yet."""
        unused = (self.series_ids > 0) & (self.positions < 0)
        self.series_ids[unused] = UNRESOLVED
        self.unresolved += int(np.count_nonzero(unused))

    def _settle(self, index: int) -> None:
        if self.series_ids[index] == UNRESOLVED:
            self.unresolved -= 1

    def refusal(self, index: int) -> tuple[Reason, str]:
        """Return why an index is refused."""
        return self._refusals[index]

    @property
    def has_refusals(self) -> bool:
        """Whether any index is refused."""
        return bool(self._refusals)

    def key(self, index: int) -> str:
        """Return the key of a defined index."""
        return self._keys[index] or ""

    def first_undefined(self, indexes: NDArray[np.uint32]) -> int | None:
        """Return an index that is not defined, if there is one among `indexes`."""
        if not len(indexes):
            return None
        greatest = int(indexes[indexes.argmax()])  # a third of what `max` takes
        if greatest >= self.size:
            return greatest
        if self._defined == self.size:
            return None
        holes = indexes[self.series_ids[indexes] == UNDEFINED]
        return int(holes[0]) if len(holes) else None

    def _grow(self, size: int) -> None:
        if size <= self.size:
            return
        self._keys.extend([None] * (size - self.size))
        self.size = size
        capacity = len(self.series_ids)
        if size > capacity:
            capacity = max(size, capacity * 2)
            series_ids = np.full(capacity, UNDEFINED, np.int64)
            positions = np.full(capacity, -1, np.int32)
            series_ids[: len(self.series_ids)] = self.series_ids
            positions[: len(self.positions)] = self.positions
            self.series_ids, self.positions = series_ids, positions


def key_fault(key: str) -> str | None:
    """Return what is wrong with a metric's key, or None."""
    if not key:
        return "the key is empty; it must have 1 character or more"
    if len(key) > KEY_CHARACTERS_MAX:
        return f"the key has {len(key)} characters; the limit is {KEY_CHARACTERS_MAX}"
    if not key.isprintable() and any(ord(c) < 32 or ord(c) == 127 for c in key):
        return f"the key {key[:80]!r} contains NUL or another control character"
    return None
