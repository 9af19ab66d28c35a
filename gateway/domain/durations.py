"""Durations as people write them: `90d`."""

import re
from typing import Final

_DURATION: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def duration_text(seconds: float) -> str:
    """Return what `parse_duration_s` reads as so many whole seconds, in the greatest unit."""
    unit = next(unit for unit in "wdhms" if seconds % _SECONDS[unit] == 0)
    return f"{seconds / _SECONDS[unit]:.0f}{unit}"


def parse_duration_s(text: str) -> float:
    """Return the seconds of a number with s, m, h, d or w.

    Raises:
        ValueError: it is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration: a number and s, m, h, d or w, as 90d")
    return float(int(match[1]) * _SECONDS[match[2]])
