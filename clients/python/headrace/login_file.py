"""What `headrace login` stores: an address and the token that belongs to it. Imports nothing heavy.

`HEADRACE_LOGIN_FILE`, by default `login.json` in the user's configuration
directory; readable by its owner alone.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from headrace.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A gateway and how to reach it; see Settings."""

    address: str = ""
    token: str = ""
    tls_ca: str = ""
    workspace: str = ""


def login_path(environ: Mapping[str, str]) -> Path:
    """Where it is stored."""
    if given := environ.get("HEADRACE_LOGIN_FILE"):
        return Path(given).expanduser()
    import platformdirs  # noqa: PLC0415 - only where no file is given

    return platformdirs.user_config_path("headrace", appauthor=False) / "login.json"


def read_login(path: Path) -> Login:
    """What is stored; empty when nothing is.

    Raises:
        ConfigurationError: the file is damaged or cannot be read; names it.
    """
    try:
        content = json.loads(path.read_bytes() or b"{}")
        return Login(**{field.name: str(content.get(field.name, "")) for field in fields(Login)})
    except FileNotFoundError:
        return Login()
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}; `headrace login ADDRESS` writes it anew"
        ) from error


def write_login(login: Login, path: Path) -> Path:
    """Store it, whole or not at all, readable by the owner alone; return the path.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(login), file, indent=1)
    draft.rename(path)
    return path
