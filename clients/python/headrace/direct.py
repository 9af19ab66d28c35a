"""Straight to the S3 server: PUT and GET of signed URLs, over plain sockets.

The kernel copies file to socket where it can (`sendfile`), so that a part
costs the client almost nothing. Every failure is a DirectError: the caller
goes through the gateway instead.
"""

import hashlib
import http.client
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import IO, Final
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S: Final = 3.0
"""An S3 server that cannot be reached must not cost a transfer more than this."""
PROGRESS_TIMEOUT_S: Final = 60.0
_SEND_BYTES: Final = 4 * 1024 * 1024
_READ_BYTES: Final = 1024 * 1024


class DirectError(Exception):
    """The S3 server cannot be reached, or refused; `connected` tells which."""

    def __init__(self, message: str, *, connected: bool) -> None:
        super().__init__(message)
        self.connected = connected


class DirectConnections:
    """Connections to S3, one a thread and server, kept open."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def put(
        self,
        url: str,
        headers: Mapping[str, str],
        file: IO[bytes],
        *,
        offset: int,
        length: int,
        progress: Callable[[int], None],
    ) -> None:
        """Send `length` bytes of a file from `offset` as a PUT's body.

        Raises:
            DirectError: it was not answered by 200.
        """
        connection, target = self._open(url)
        try:
            connection.putrequest("PUT", target, skip_accept_encoding=True)
            connection.putheader("Content-Length", str(length))
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            end = offset + length
            while offset < end:
                sent = connection.sock.sendfile(file, offset, min(_SEND_BYTES, end - offset))
                if not sent:
                    raise DirectError("the file became shorter", connected=True)
                offset += sent
                progress(sent)
            with connection.getresponse() as response:
                text = response.read(2_000).decode(errors="replace")
                if response.status != http.HTTPStatus.OK:
                    raise DirectError(f"S3 answered {response.status}: {text}", connected=True)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise DirectError(f"S3 broke off: {error}", connected=True) from error
        except DirectError:
            self._drop()
            raise

    def get(
        self,
        url: str,
        *,
        offset: int,
        length: int,
        write: Callable[[memoryview, int], None],
        progress: Callable[[int], None],
    ) -> bytes:
        """Read a range, passing (bytes, offset) to `write`; return its SHA-256.

        Raises:
            DirectError: it was not answered whole.
        """
        connection, target = self._open(url)
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_READ_BYTES))
        end = offset + length
        try:
            wanted = f"bytes={offset}-{end - 1}"
            connection.request("GET", target, headers={"Range": wanted})
            with connection.getresponse() as response:
                # Some servers answer a range by 200 and only the range.
                if response.status not in (200, 206) or response.length != length:
                    raise DirectError(f"S3 answered {response.status} to a range", connected=True)
                while offset < end:
                    count = response.readinto(buffer)
                    if not count:
                        raise DirectError("S3 broke off", connected=True)
                    digest.update(buffer[:count])
                    write(buffer[:count], offset)
                    offset += count
                    progress(count)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise DirectError(f"S3 broke off: {error}", connected=True) from error
        except DirectError:
            self._drop()
            raise
        return digest.digest()

    def close(self) -> None:
        """Close every connection."""
        for connection in self._all:
            connection.close()

    def _open(self, url: str) -> tuple[http.client.HTTPConnection, str]:
        parts = urlsplit(url)
        target = f"{parts.path}?{parts.query}"
        server = (parts.scheme, parts.netloc)
        known: tuple[tuple[str, str], http.client.HTTPConnection] | None
        known = getattr(self._local, "known", None)
        if known is not None and known[0] == server:
            return known[1], target
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                parts.netloc, timeout=CONNECT_TIMEOUT_S, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except OSError as error:
            raise DirectError(f"S3 cannot be reached: {error}", connected=False) from error
        connection.sock.settimeout(PROGRESS_TIMEOUT_S)
        connection.timeout = PROGRESS_TIMEOUT_S
        self._local.known = (server, connection)
        self._all.append(connection)
        return connection, target

    def _drop(self) -> None:
        known = getattr(self._local, "known", None)
        if known is not None:
            known[1].close()
            self._all.remove(known[1])
            self._local.known = None
