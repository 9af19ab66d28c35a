"""Validators of request fields. Each returns the value or names field, value and limit."""

import re
from collections.abc import Collection
from typing import Any, Final
from uuid import UUID

from google.protobuf.field_mask_pb2 import FieldMask

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.limits import NAME_CHARACTERS_MAX

_HEX_ID: Final = re.compile(r"[0-9a-f]{32}")
# What a key or a name may not hold: NUL, which PostgreSQL cannot store, and the
# other control characters (C0, DEL, C1), which no terminal should be fed.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def hex_id(text: str, *, field: str) -> UUID:
    """Return the UUID written as 32 lower-case hex digits.

    Raises:
        HeadraceError: FIELD_REQUIRED when empty, FIELD_INVALID otherwise.
    """
    if not text:
        raise HeadraceError(Reason.FIELD_REQUIRED, f"{field} is required", field=field)
    if not _HEX_ID.fullmatch(text):
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"{field} must be 32 lower-case hex digits",
            field=field,
            value=text,
        )
    return UUID(hex=text)


def run_id(text: str, *, field: str = "run_id") -> UUID:
    """Return a run's id; see `hex_id`."""
    return hex_id(text, field=field)


def name(text: str, *, field: str, default: str, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """Return a name for people, or the default when empty.

    Raises:
        HeadraceError: LIMIT_EXCEEDED or FIELD_INVALID.
    """
    if not text:
        return default
    if len(text) > characters_max:
        raise HeadraceError(
            Reason.LIMIT_EXCEEDED,
            f"{field} has {len(text)} characters, more than {characters_max}",
            field=field,
            value=len(text),
            limit=characters_max,
        )
    if _CONTROL.search(text):
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"{field} must not contain control characters",
            field=field,
            value=repr(text),
        )
    return text


def required_name(text: str, *, field: str) -> str:
    """Return a name that must be given; see `name`.

    Raises:
        HeadraceError: FIELD_REQUIRED when empty.
    """
    if not text:
        raise HeadraceError(Reason.FIELD_REQUIRED, f"{field} is required", field=field)
    return name(text, field=field, default="")


def text(value: str, *, field: str, characters_max: int) -> str:
    """Return free text, which may have lines.

    Raises:
        HeadraceError: LIMIT_EXCEEDED, or FIELD_INVALID for NUL.
    """
    count(len(value), field=field, maximum=characters_max, unit="characters")
    if "\0" in value:
        raise HeadraceError(Reason.FIELD_INVALID, f"{field} contains NUL", field=field)
    return value


def count(number: int, *, field: str, maximum: int, unit: str = "elements") -> None:
    """Refuse more than `maximum` of something.

    Raises:
        HeadraceError: LIMIT_EXCEEDED.
    """
    if number > maximum:
        raise HeadraceError(
            Reason.LIMIT_EXCEEDED,
            f"{field} has {number} {unit}, more than {maximum}",
            field=field,
            value=number,
            limit=maximum,
        )


def mask(paths: FieldMask, *, allowed: Collection[str]) -> list[str]:
    """Return the paths of an update mask.

    Raises:
        HeadraceError: FIELD_REQUIRED when there are none, FIELD_INVALID for others
            than `allowed`.
    """
    if not paths.paths:
        raise HeadraceError(Reason.FIELD_REQUIRED, "update_mask is required", field="update_mask")
    for path in paths.paths:
        if path not in allowed:
            raise HeadraceError(
                Reason.FIELD_INVALID,
                f"update_mask may name {', '.join(allowed)}, not {path!r}",
                field="update_mask",
                value=path,
            )
    return list(dict.fromkeys(paths.paths))


def page_identity(request: Any) -> bytes:
    """Return what a page token belongs to: the request but for its page_size and page_token."""
    rest = type(request)()
    rest.CopyFrom(request)
    rest.ClearField("page_size")
    rest.ClearField("page_token")
    serialized: bytes = rest.SerializeToString(deterministic=True)
    return serialized


def choice(value: int, *, field: str, default: int, allowed: range) -> int:
    """Return an enum's number, or the default for `_UNSPECIFIED`.

    Raises:
        HeadraceError: FIELD_INVALID for a number the contract does not define.
    """
    if value == 0:
        return default
    if value not in allowed:
        raise HeadraceError(
            Reason.FIELD_INVALID,
            f"{field} must be from {allowed.start} to {allowed.stop - 1}",
            field=field,
            value=value,
            limit=allowed.stop - 1,
        )
    return value


def page_size(value: int, *, default: int, maximum: int) -> int:
    """Return the size of a page: 0 is the default, more than the maximum is the maximum.

    Raises:
        HeadraceError: FIELD_INVALID when negative.
    """
    if value < 0:
        raise HeadraceError(
            Reason.FIELD_INVALID, "page_size must not be negative", field="page_size", value=value
        )
    return min(value, maximum) or default
