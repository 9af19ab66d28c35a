"""What users pass to `log` → flat keys and floats. Imports no array library.

The fast path of `Run.log` never comes here: it packs the values as they are
(`struct` accepts whatever converts itself to float). These functions run for a
new set of keys, for nested dictionaries, and to name what is wrong.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsFloat, cast

from headrace.errors import InvalidMetricError
from headrace.limits import KEY_CHARACTERS_MAX, STEP_MAX, STEP_MIN

_NESTING_MAX = 16
"""Levels of nested dictionaries: a bound, so that a dictionary that contains itself ends."""


def flatten(metrics: Mapping[Any, Any], refuse: Callable[[str, str], None]) -> dict[str, float]:
    """Flat `a/b` keys with float values; what cannot be a point goes to `refuse(kind, text)`.

    Values are ints, floats, bools, zero-dimensional or one-element arrays of
    numpy, torch, jax and whatever else has `item()` or `__float__`. NaN and
    infinities are kept.
    """
    points: dict[str, float] = {}
    for key, value in leaves(metrics, refuse):
        fault = key_fault(key)
        if fault is not None:
            refuse("key", fault)
            continue
        number = to_float(value)
        if number is None:
            kind = type(value).__name__
            refuse("value", f"the value of {key!r} is no number but {kind}: {_quoted(value)}")
            continue
        points[key] = number
    return points


def leaves(
    values: Mapping[Any, Any], refuse: Callable[[str, str], None]
) -> Iterator[tuple[str, Any]]:
    """What stands in nested mappings, by `a/b` keys; keys that are no text are refused."""
    return _leaves(values, "", _NESTING_MAX, refuse)


def _leaves(
    metrics: Mapping[Any, Any], prefix: str, depth: int, refuse: Callable[[str, str], None]
) -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        if not isinstance(name, str):
            refuse("key", f"a key must be text, not {type(name).__name__}: {_quoted(name)}")
            continue
        key = prefix + name
        if not isinstance(value, Mapping):
            yield key, value
        elif depth == 0:
            refuse("key", f"{_quoted(key)} is nested deeper than {_NESTING_MAX} levels")
        else:
            yield from _leaves(value, key + "/", depth - 1, refuse)


def key_fault(key: str) -> str | None:
    """Why the gateway would reject this key; None when it would not."""
    if not key:
        return "a key is empty"
    if len(key) > KEY_CHARACTERS_MAX:
        return f"key {_quoted(key)} has {len(key)} characters; the limit is {KEY_CHARACTERS_MAX}"
    fault = name_fault(key)
    return None if fault is None else f"key {_quoted(key)} {fault}"


def name_fault(text: str) -> str | None:
    """What no key and no name may be, whatever its length; None when it is not."""
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text):
        return "contains a control character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None


def to_float(value: Any) -> float | None:
    """The value as a float; None when it is no single real number."""
    if isinstance(value, str | bytes | bytearray | complex):
        return None
    try:
        item = getattr(value, "item", None)
        number = item() if callable(item) else value
        if isinstance(number, str | bytes | complex):
            return None
        return float(cast("SupportsFloat", number))
    except Exception:
        return None


def to_step(step: Any) -> int:
    """The step as an int.

    Raises:
        InvalidMetricError: not an integer, or outside [-2^62, 2^62).
    """
    try:
        number = _to_int(step)
    except Exception:  # of whatever library the step is from
        raise InvalidMetricError(
            f"step must be an integer, not {type(step).__name__}: {_quoted(step)}"
        ) from None
    if not STEP_MIN <= number <= STEP_MAX:
        raise InvalidMetricError(f"step {number} is outside [-2^62, 2^62)")
    return number


def _to_int(step: Any) -> int:
    try:
        return operator.index(step)
    except TypeError:
        item = getattr(step, "item", None)
        value = item() if callable(item) else step
        whole = isinstance(value, float) and value.is_integer()
        return int(value) if whole else operator.index(value)


def _quoted(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        return "(unprintable)"
    return text if len(text) <= 80 else text[:77] + "..."
