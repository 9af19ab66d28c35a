"""Where the peers are installed, and what to say when they are not."""

import shutil
from pathlib import Path
from typing import Final

PEERS_ENVIRONMENT: Final = Path(__file__).parents[2] / ".venv-peers"


class NotInstalledError(Exception):
    """A peer is not on this machine: its scenario is skipped, and the result says so."""


def peer_program(name: str) -> Path:
    """Return a program of the peers' virtual environment.

    Raises:
        NotInstalledError: it is not there.
    """
    program = PEERS_ENVIRONMENT / "bin" / name
    if not program.exists():
        raise NotInstalledError(f"{name} is not in {PEERS_ENVIRONMENT.name}: run `make peers`")
    return program


def system_program(name: str) -> Path:
    """Return a program of the system.

    Raises:
        NotInstalledError: it is not on the PATH.
    """
    found = shutil.which(name)
    if found is None:
        raise NotInstalledError(
            f"{name} is not on the PATH: `make peers` installs it as root on Debian"
        )
    return Path(found)
