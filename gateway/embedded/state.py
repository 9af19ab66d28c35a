"""What a directory remembers: generated secrets and the last ports, in one file, mode 0600."""

import json
import os
import secrets
import socket
from pathlib import Path
from typing import TypeVar

from gateway.embedded.processes import HOST, EmbeddedError

_Value = TypeVar("_Value", str, int)


class State:
    """The JSON file of one directory that remembers secrets and ports."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def secret(self, name: str) -> str:
        """Return a secret, made at the first call: 32 hex digits."""
        known = self._read().get(name)
        return str(known) if known else self.set(name, secrets.token_hex(16))

    def port(self, name: str, *, renew: bool = False) -> int:
        """Return the last port of this name, or a free one."""
        known = self._read().get(name)
        return int(known) if known and not renew else free_port()

    def set(self, name: str, value: _Value) -> _Value:
        """Remember a value, atomically and durably; return it."""
        values = self._read()
        if values.get(name) != value:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                json.dump({**values, name: value}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self._path)
        return value

    def _read(self) -> dict[str, str | int]:
        try:
            values: dict[str, str | int] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise EmbeddedError(f"{self._path} is damaged: {error}") from None
        return values


def port_is_free(port: int) -> bool:
    """Return whether a loopback port can be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
