"""Page tokens of searches: a cursor as text, bound to the request it was issued for.

A token names a place, it grants nothing: every page is read with the caller's own
workspace. The digest keeps a token from being used with another filter or order.
"""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.searches import Cursor, CursorValue, Phase

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def issue(cursor: Cursor | None, request: bytes) -> str:
    """Return the token of a cursor; empty for None.

    Args:
        cursor: where the next page begins.
        request: what the token belongs to, for example the serialized request
            without its page size and token.
    """
    if cursor is None:
        return ""
    state = [cursor.phase.value, *map(_encode, cursor.values)]
    text = json.dumps([_digest(request, state), *state], ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def accept(token: str, request: bytes) -> Cursor | None:
    """Return the cursor of a token; None for an empty one.

    Raises:
        HeadraceError: PAGE_TOKEN_INVALID.
    """
    if not token:
        return None
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        digest, *state = json.loads(text)
        if digest != _digest(request, state):
            raise ValueError
        return Cursor(phase=Phase(state[0]), values=tuple(map(_decode, state[1:])))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
        raise HeadraceError(
            Reason.PAGE_TOKEN_INVALID,
            "page_token was not issued for this request",
            field="page_token",
        ) from None


def _digest(request: bytes, state: list[Any]) -> str:
    whole = hashlib.sha256(request)
    whole.update(json.dumps(state).encode())
    return whole.hexdigest()[:16]


def _encode(value: CursorValue) -> list[Any]:
    match value:
        case None:
            return ["n", 0]
        case datetime():
            return ["t", (value - _EPOCH) // _MICROSECOND]
        case UUID():
            return ["u", value.hex]
        case float():
            return ["f", value.hex()]
        case int():
            return ["i", value]
        case str():
            return ["s", value]


def _decode(item: list[Any]) -> CursorValue:
    kind, value = item
    match kind:
        case "n":
            return None
        case "t":
            return _EPOCH + int(value) * _MICROSECOND
        case "u":
            return UUID(hex=str(value))
        case "f":
            return float.fromhex(str(value))
        case "i":
            return int(value)
        case "s":
            return str(value)
    raise ValueError(kind)
