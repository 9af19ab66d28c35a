"""Straight to the S3 server: PUT and GET of signed URLs, over plain sockets.

The kernel copies file to socket where nothing is encrypted (`sendfile`), so
that a part costs the client almost nothing. Every failure is a DirectError: the
caller goes through the gateway instead.
"""

import contextlib
import hashlib
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
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


_Server = tuple[str, str]  # scheme and host:port


class DirectConnections:
    """Connections to S3 servers, kept open and lent to one request at a time."""

    def __init__(self) -> None:
        self._idle: dict[_Server, list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

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

        Other threads may send other ranges of the file meanwhile.

        Raises:
            DirectError: it was not answered by 200.
        """
        with self._lent(url) as (connection, target):
            connection.putrequest("PUT", target, skip_accept_encoding=True)
            connection.putheader("Content-Length", str(length))
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            end = offset + length
            while offset < end:
                sent = _send(connection.sock, file, offset, min(_SEND_BYTES, end - offset))
                if not sent:
                    raise DirectError("the file became shorter", connected=True)
                offset += sent
                progress(sent)
            with connection.getresponse() as response:
                text = response.read(2_000).decode(errors="replace")
                if response.status != http.HTTPStatus.OK:
                    raise DirectError(f"S3 answered {response.status}: {text}", connected=True)

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
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_READ_BYTES))
        end = offset + length
        with self._lent(url) as (connection, target):
            connection.request("GET", target, headers={"Range": f"bytes={offset}-{end - 1}"})
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
        return digest.digest()

    def close(self) -> None:
        """Close every connection that is not lent."""
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    @contextlib.contextmanager
    def _lent(self, url: str) -> Iterator[tuple[http.client.HTTPConnection, str]]:
        """Yield a connection and the request's target; it is kept if all goes well.

        Raises:
            DirectError: the server cannot be reached, or the connection broke.
        """
        parts = urlsplit(url)
        server = (parts.scheme, parts.netloc)
        with self._lock:
            idle = self._idle.get(server)
            connection = idle.pop() if idle else None
        connection = connection or _connected(server)
        try:
            yield connection, f"{parts.path}?{parts.query}"
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise DirectError(f"S3 broke off: {error}", connected=True) from error
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.setdefault(server, []).append(connection)


def _send(to: socket.socket, file: IO[bytes], offset: int, length: int) -> int:
    """Send a range of a file; return how many bytes went, 0 at its end."""
    if not isinstance(to, ssl.SSLSocket):
        return to.sendfile(file, offset, length)
    # Its `sendfile` would seek, and all parts of the file share one position.
    piece = os.pread(file.fileno(), min(_READ_BYTES, length), offset)
    to.sendall(piece)
    return len(piece)


def _connected(server: _Server) -> http.client.HTTPConnection:
    scheme, address = server
    connection: http.client.HTTPConnection
    if scheme == "https":
        connection = http.client.HTTPSConnection(
            address, timeout=CONNECT_TIMEOUT_S, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(address, timeout=CONNECT_TIMEOUT_S)
    try:
        connection.connect()
    except OSError as error:
        raise DirectError(f"S3 cannot be reached: {error}", connected=False) from error
    connection.sock.settimeout(PROGRESS_TIMEOUT_S)
    connection.timeout = PROGRESS_TIMEOUT_S
    return connection
