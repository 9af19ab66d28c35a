"""Who is calling: set once per RPC by the interceptor, read by the services.

Services take the workspace from here, never from a message: runs of another
workspace do not exist for a caller.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

DEFAULT_WORKSPACE_ID: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """An authenticated caller.

    Attributes:
        workspace_id: the boundary of everything it can see.
        name: the token's name, for logs.
        can_write: False for a token that only reads.
        can_administer: whether it may change workspaces.
        archived: whether its workspace takes no more writes.
    """

    workspace_id: int
    name: str
    can_write: bool
    can_administer: bool = False
    archived: bool = False


ANONYMOUS: Final = Identity(
    workspace_id=DEFAULT_WORKSPACE_ID, name="anonymous", can_write=True, can_administer=True
)
"""Every caller of a gateway that runs without authentication."""

_current: ContextVar[Identity] = ContextVar("identity")


def current_identity() -> Identity:
    """Return the caller of the RPC that this task serves.

    Raises:
        LookupError: outside an RPC; a defect, so it is not hidden by a default.
    """
    return _current.get()


def set_identity(identity: Identity) -> None:
    """Set the caller for this task and the tasks it starts; for the interceptor only."""
    _current.set(identity)
