"""Turns bearer tokens into identities, with a small memory.

An identity is believed for `cache_s`; only lookups that found somebody are
remembered, and only one lookup runs at a time, so that a flood of wrong tokens
holds one database connection and no memory.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.identity import ANONYMOUS, Identity

_CACHED_TOKENS_MAX: Final = 10_000
_TOKEN_CHARACTERS_MAX: Final = 256
_SCHEME: Final = "bearer "


class Tokens(Protocol):
    """Where tokens are kept."""

    async def find(self, token_sha256: bytes) -> Identity | None:
        """Return whom a token stands for; None when unknown, expired or revoked."""


class Authenticator:
    """Knows callers by the `authorization` metadata of their call."""

    def __init__(
        self, tokens: Tokens | None, *, cache_s: float, clock: Callable[[], float]
    ) -> None:
        """Prepare.

        Args:
            tokens: None when the gateway runs without authentication.
            cache_s: how long a found identity is believed.
            clock: seconds, monotonic.
        """
        self._tokens = tokens
        self._cache_s = cache_s
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()
        self._one_lookup = asyncio.Lock()

    @property
    def required(self) -> bool:
        """Whether calls need a token."""
        return self._tokens is not None

    async def identify(self, authorization: str | None) -> Identity:
        """Return the caller.

        Args:
            authorization: the metadata of that name; None when absent.

        Raises:
            HeadraceError: UNAUTHENTICATED; STORE_UNAVAILABLE when it cannot be known.
        """
        if self._tokens is None:
            return ANONYMOUS
        key = hashlib.sha256(_token_of(authorization).encode()).digest()
        if (identity := self._remembered(key)) is not None:
            return identity
        async with self._one_lookup:
            # Whoever waited here finds what the one before learned.
            identity = self._remembered(key) or await self._tokens.find(key)
        if identity is None:
            raise HeadraceError(Reason.UNAUTHENTICATED, "the token is unknown, expired or revoked")
        self._known[key] = (self._clock() + self._cache_s, identity)
        if len(self._known) > _CACHED_TOKENS_MAX:
            self._known.popitem(last=False)
        return identity

    def _remembered(self, key: bytes) -> Identity | None:
        until, identity = self._known.get(key, (0.0, None))
        if identity is not None and until <= self._clock():
            del self._known[key]
            return None
        return identity


def _token_of(authorization: str | None) -> str:
    if authorization is None:
        raise HeadraceError(
            Reason.UNAUTHENTICATED,
            "a token is required: send the metadata `authorization: Bearer hr_...`",
            field="authorization",
        )
    token = authorization[len(_SCHEME) :].strip()
    if authorization[: len(_SCHEME)].lower() != _SCHEME or not token:
        raise HeadraceError(
            Reason.UNAUTHENTICATED,
            "the authorization must have the form `Bearer hr_...`",
            field="authorization",
        )
    if len(token) > _TOKEN_CHARACTERS_MAX:
        raise HeadraceError(
            Reason.UNAUTHENTICATED,
            "the token is unknown, expired or revoked",
            field="authorization",
            limit=_TOKEN_CHARACTERS_MAX,
        )
    return token
