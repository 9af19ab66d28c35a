"""Just enough of PostgreSQL's protocol to know what passes by. Sans-IO.

`FrontendReader` cuts a client's bytes into messages and tells which SQL each
one executes (through prepared statements and portals too); `BackendReader`
finds the CommandComplete tags in a server's bytes. Neither changes anything.
Source: PostgreSQL documentation, chapter 54, "Frontend/Backend Protocol".
"""

import struct
from dataclasses import dataclass
from typing import Final

SSL_REQUEST: Final = 80877103
GSS_REQUEST: Final = 80877104
CANCEL_REQUEST: Final = 80877102


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendMessage:
    """One message of a client.

    Attributes:
        kind: the type byte as a letter (`Q` simple query, `E` execute, `d`
            CopyData, `c` CopyDone, …); empty for the untyped startup messages.
        sql: the text that the message executes; empty for other kinds.
        code: the request code of a startup message, else 0.
        raw: the whole message, type and length included.
    """

    kind: str
    sql: str
    code: int
    raw: bytes


class FrontendReader:
    """Cuts a client's byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._typed = False
        self._statements: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}

    def feed(self, data: bytes) -> list[FrontendMessage]:
        """Return the messages that `data` completes, in order."""
        self._buffer += data
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> FrontendMessage | None:
        head = 1 if self._typed else 0
        if len(self._buffer) < head + 4:
            return None
        size = head + int(struct.unpack_from(">I", self._buffer, head)[0])
        if len(self._buffer) < size:
            return None
        raw = bytes(self._buffer[:size])
        del self._buffer[:size]
        if not self._typed:
            code = int(struct.unpack_from(">I", raw, 4)[0])
            # SSL and GSS requests are followed by another untyped message.
            self._typed = code not in (SSL_REQUEST, GSS_REQUEST)
            return FrontendMessage(kind="", sql="", code=code, raw=raw)
        kind = chr(raw[0])
        return FrontendMessage(kind=kind, sql=self._executed(kind, raw[5:]), code=0, raw=raw)

    def _executed(self, kind: str, body: bytes) -> str:
        if kind == "Q":
            return body.rstrip(b"\0").decode()
        if kind == "P":
            name, sql, _ = body.split(b"\0", 2)
            self._statements[name] = sql.decode()
        elif kind == "B":
            portal, statement, _ = body.split(b"\0", 2)
            self._portals[portal] = self._statements.get(statement, "")
        elif kind == "E":
            return self._portals.get(body.split(b"\0", 1)[0], "")
        return ""


class BackendReader:
    """Finds the ends of commands in a server's byte stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """Return the tags of the commands whose end `data` completes.

        `COMMIT`, `UPDATE 3`, …; `ERROR` and `SUSPENDED` stand for ErrorResponse
        and PortalSuspended.
        """
        self._buffer += data
        tags = []
        while len(self._buffer) >= 5:
            size = 1 + int(struct.unpack_from(">I", self._buffer, 1)[0])
            if len(self._buffer) < size:
                break
            if self._buffer[0] == ord("C"):
                tags.append(bytes(self._buffer[5 : size - 1]).decode())
            elif self._buffer[0] == ord("E"):
                tags.append("ERROR")
            elif self._buffer[0] == ord("s"):  # a row limit was reached, as by fetchrow
                tags.append("SUSPENDED")
            del self._buffer[:size]
        return tags
