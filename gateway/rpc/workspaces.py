"""Which workspace a call acts in: the one that its metadata names, if the caller may.

A token is bound to its workspace: naming another is refused as if there were none.
Without tokens a caller may name any. What was found is believed for some seconds.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.experiments import WORKSPACE_NAME, Workspace
from gateway.domain.identity import Identity

_CACHED_MAX: Final = 1_000


class Workspaces(Protocol):
    """Where workspaces are kept."""

    async def find(self, name: str) -> Workspace | None:
        """Return a workspace; None when there is none of this name."""


class WorkspaceChoice:
    """Resolves the metadata `headrace-workspace`."""

    def __init__(
        self, workspaces: Workspaces, *, cache_s: float, clock: Callable[[], float]
    ) -> None:
        """Prepare.

        Args:
            workspaces: where they are kept.
            cache_s: how long a found workspace is believed.
            clock: seconds, monotonic.
        """
        self._workspaces = workspaces
        self._cache_s = cache_s
        self._clock = clock
        self._known: dict[str, tuple[float, Workspace]] = {}

    async def choose(self, identity: Identity, name: str, *, bound: bool) -> Identity:
        """Return the caller as it acts in the workspace `name`.

        Args:
            identity: the caller.
            name: as the metadata has it.
            bound: whether the caller may name its own workspace only.

        Raises:
            HeadraceError: WORKSPACE_NOT_FOUND; STORE_UNAVAILABLE.
        """
        workspace = await self._find(name) if WORKSPACE_NAME.fullmatch(name) else None
        if workspace is None or (bound and workspace.workspace_id != identity.workspace_id):
            raise HeadraceError(
                Reason.WORKSPACE_NOT_FOUND,
                f"there is no workspace {name[:63]!r}, or it is not yours",
                field="headrace-workspace",
                value=name,
            )
        return replace(
            identity,
            workspace_id=workspace.workspace_id,
            archived=workspace.archived_at is not None,
        )

    async def _find(self, name: str) -> Workspace | None:
        until, known = self._known.get(name, (0.0, None))
        if known is not None and until > self._clock():
            return known
        found = await self._workspaces.find(name)
        if found is not None:
            if len(self._known) >= _CACHED_MAX:
                self._known.clear()
            self._known[name] = (self._clock() + self._cache_s, found)
        return found
