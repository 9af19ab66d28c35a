"""What the doctor finds: one line for each check, with the remedy where one is needed."""

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """How serious a finding is."""

    GOOD = "good"
    WARN = "warn"
    """It works, and will work better when changed."""
    BAD = "bad"
    """It fails, or will lose data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was looked at, for example `max_wal_size`.
        health: how it is.
        found: what there is, for people.
        remedy: what to change; empty when nothing.
    """

    check: str
    health: Health
    found: str
    remedy: str = ""


def good(check: str, found: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(check=check, health=Health.GOOD, found=found)
