"""The network between the jobs and the gateway: a TCP proxy that can be cut."""

import asyncio
import contextlib
from typing import Final

_PIECE_BYTES: Final = 64 * 1024


class Wire:
    """Forwards connections to the gateway, until it is cut.

    Attributes:
        address: host:port that the jobs connect to.
    """

    def __init__(self, gateway_address: str) -> None:
        host, port = gateway_address.split(":")
        self.address = ""
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False

    async def open(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def cut(self) -> int:
        """Break every connection, and each new one, until `mend`; return how many broke."""
        self._is_cut = True
        broken = len(self._writers) // 2
        for writer in self._writers:
            writer.transport.abort()
        return broken

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    async def close(self) -> None:
        """Stop listening and break what is open."""
        if self._server is not None:
            self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:  # the gateway is down
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers -= {writer, far_writer}

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                writer.write(piece)
                await writer.drain()
        writer.close()
