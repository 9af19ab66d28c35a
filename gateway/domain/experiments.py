"""Experiments and workspaces as values."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

DEFAULT_EXPERIMENT: Final = "Default"
DEFAULT_WORKSPACE: Final = "default"
WORKSPACE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
WORKSPACE_NAME_RULE: Final = "1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit"
TAGS_MAX: Final = 100
"""Tags set or deleted by one call; MLflow's limit."""
_CORE_BYTES: Final = 60
_TAG_BYTES: Final = 12
"""In an answer, besides the texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A named set of runs; see headrace.v1.Experiment. Tags are ordered by key."""

    experiment_id: int
    name: str
    description: str
    tags: tuple[tuple[str, str], ...]
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None

    def answer_bytes(self) -> int:
        """Return about how many bytes it has in an answer, rather more than fewer."""
        texts = [self.name, self.description, *(text for tag in self.tags for text in tag)]
        return _CORE_BYTES + _TAG_BYTES * len(self.tags) + sum(len(t.encode()) for t in texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A boundary of isolation."""

    workspace_id: int
    name: str
    created_at: datetime
    archived_at: datetime | None
