"""Bearer tokens: made by `headrace-gateway token`, looked up by the authenticator.

A token is `hr_` and 256 random bits. The database holds its SHA-256 only: so
much randomness needs neither salt nor stretching, and the text is shown once.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.domain.identity import Identity
from gateway.store.connections import Database
from gateway.store.queries import load

_SQL: Final = load("tokens")
PREFIX: Final = "hr_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as stored: everything but its text."""

    token_id: int
    workspace: str
    name: str
    can_write: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def digest(token: str) -> bytes:
    """Return what is stored of a token: its SHA-256, 32 bytes."""
    return hashlib.sha256(token.encode()).digest()


class TokenStore:
    """The tokens of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, token_sha256: bytes) -> Identity | None:
        """Return whom a token stands for; None when unknown, expired or revoked.

        Raises:
            StoreUnavailableError: it cannot be known now.
        """
        async with self._database.query() as connection:
            row = await connection.fetchrow(_SQL["find"], token_sha256)
        if row is None:
            return None
        return Identity(**row)

    async def create(
        self, *, workspace: str, name: str, can_write: bool, lifetime_s: float | None = None
    ) -> tuple[int, str]:
        """Make a token, and its workspace if need be; return its id and its text."""
        token = PREFIX + secrets.token_urlsafe(32)
        async with self._database.query() as connection, connection.transaction():
            await connection.execute(_SQL["ensure_workspace"], workspace)
            token_id: int = await connection.fetchval(
                _SQL["create"], workspace, name, digest(token), can_write, lifetime_s
            )
        return token_id, token

    async def list(self) -> list[Token]:
        """Return all tokens, the oldest first."""
        async with self._database.query() as connection:
            return [Token(**row) for row in await connection.fetch(_SQL["list"])]

    async def revoke(self, token_id: int) -> bool:
        """Revoke a token for ever; return whether there is one. Idempotent.

        Gateways notice within `token_cache_s`, open streams within `token_recheck_s`.
        """
        async with self._database.query() as connection:
            return await connection.fetchval(_SQL["revoke"], token_id) is not None
