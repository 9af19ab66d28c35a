"""A TCP proxy that breaks the wire at chosen moments.

It stands before PostgreSQL, S3 or the gateway, on loopback. It cuts, delays,
trickles or black-holes whole connections, and a `Trap` cuts the next one after
its first bytes. With `postgres=True` it also understands the frontend's
messages, and a `MessageTrap` breaks the wire at one of them. So both outcomes
of an ambiguous COMMIT can be forced: cut `BEFORE` it (the server never saw it)
and cut at the `REPLY` (the server executed it, the client never hears).

Everything runs in the loop that called `start`; `ThreadedProxy` is the same
for callers without one, and `python -m tests.support.proxy` for other processes.
"""

import argparse
import asyncio
import contextlib
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final, Self

from tests.support.postgres_wire import (
    CANCEL_REQUEST,
    GSS_REQUEST,
    SSL_REQUEST,
    BackendReader,
    FrontendMessage,
    FrontendReader,
)

_PIECE_BYTES: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


class Moment(Enum):
    """When a trap acts, relative to the message that springs it."""

    BEFORE = "before"  # the message never reaches the server
    FORWARDED = "forwarded"  # it was sent; whether it arrives is anybody's guess
    REPLY = "reply"  # the server has executed it; the reply is dropped


class Fault(Enum):
    """What a trap does."""

    CUT = "cut"  # both sides see a reset
    HOLE = "hole"  # both sides see silence: a half-open connection


class Trap:
    """Breaks one connection, once.

    Attributes:
        outcome: None until sprung; then what happened.
    """

    def __init__(self) -> None:
        self.outcome: str | None = None
        self._sprung = asyncio.Event()

    def spring(self, outcome: str) -> None:
        self.outcome = outcome
        self._sprung.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until the trap has sprung; False when it did not in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._sprung.wait()
        return self._sprung.is_set()


class MessageTrap(Trap):
    """Breaks the first connection on which a matching message passes.

    Its outcome is the tag of the server's reply (`COMMIT`) for Moment.REPLY, else the moment's
    name.
    """

    def __init__(
        self, kinds: str, pattern: str, *, moment: Moment, fault: Fault, after_copy: bool
    ) -> None:
        super().__init__()
        self._kinds = set(kinds) or {""}
        self._pattern = re.compile(pattern, re.IGNORECASE)
        self._after_copy = after_copy
        self.moment = moment
        self.fault = fault

    def matches(self, message: FrontendMessage, *, copied: bool) -> bool:
        """Whether it springs; `copied` tells whether the transaction had a COPY before."""
        if (self._after_copy and not copied) or message.code == CANCEL_REQUEST:
            return False
        return message.kind in self._kinds and bool(self._pattern.search(message.sql))


class Proxy:
    """Forwards connections to `host:port` until told to misbehave.

    Attributes:
        target: where new connections go; may be changed (a failover).
        delay_s: each piece waits this long before it is forwarded.
        trickle_bytes: when set, pieces are forwarded in bits of this size,
            1 ms apart.
        refusing: new connections are reset at once.
        muted: what servers answer is dropped; only a cut makes sense afterwards.
        connections_total: connections accepted so far.
    """

    def __init__(self, host: str, port: int, *, postgres: bool = False) -> None:
        self.target = (host, port)
        self.delay_s = 0.0
        self.trickle_bytes: int | None = None
        self.refusing = False
        self.muted = False
        self.connections_total = 0
        self._postgres = postgres
        self._traps: list[MessageTrap] = []
        self._openings: list[tuple[int, Trap]] = []
        self._live: set[_Connection] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self.host, self.port = "127.0.0.1", 0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    async def start(self, port: int = 0) -> None:
        """Listen on loopback, on an ephemeral port unless one is given."""
        self._server = await asyncio.start_server(self._accept, self.host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and cut everything. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._flowing.set()
        self.cut()
        await asyncio.gather(*(connection.ended.wait() for connection in list(self._live)))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def cut(self) -> int:
        """Reset every live connection; return how many there were."""
        live = list(self._live)
        for connection in live:
            connection.cut()
        return len(live)

    def swallow(self) -> int:
        """Black-hole the live connections for good; new ones are forwarded. Return how many."""
        live = list(self._live)
        for connection in live:
            connection.fall_silent()
        return len(live)

    def hold(self) -> None:
        """Black-hole every connection, also new ones, without closing any."""
        self._flowing.clear()

    def release(self) -> None:
        """End `hold`: what was held back is forwarded."""
        self._flowing.set()

    def trap(
        self,
        kinds: str = "QE",
        pattern: str = "",
        *,
        moment: Moment,
        fault: Fault = Fault.CUT,
        after_copy: bool = False,
    ) -> MessageTrap:
        """Set a trap for the next frontend message of one of `kinds` whose SQL matches.

        No kind means the packet that starts a connection, to which there is no Moment.REPLY;
        the password travels in kind `p`. `after_copy` waits for a message in a transaction
        that has copied something in.
        """
        assert self._postgres, "messages are understood with postgres=True"
        trap = MessageTrap(kinds, pattern, moment=moment, fault=fault, after_copy=after_copy)
        self._traps.append(trap)
        return trap

    def trap_commit(
        self, moment: Moment, fault: Fault = Fault.CUT, *, after_copy: bool = False
    ) -> MessageTrap:
        """Set a trap for the next COMMIT; `after_copy` for the next of a flush."""
        pattern = r"^\s*commit\b"
        return self.trap("QE", pattern, moment=moment, fault=fault, after_copy=after_copy)

    def trap_opening(self, client_bytes: int) -> Trap:
        """Set a trap for the next new connection: cut after so many bytes from its client.

        Several are for as many connections, in the order in which they were set.
        """
        assert not self._postgres, "messages have traps of their own"
        trap = Trap()
        self._openings.append((client_bytes, trap))
        return trap

    def disarm(self, trap: Trap) -> None:
        """Remove a trap if it has not sprung."""
        self._traps = [one for one in self._traps if one is not trap]
        self._openings = [one for one in self._openings if one[1] is not trap]

    def sprung_by(self, message: FrontendMessage, *, copied: bool) -> MessageTrap | None:
        for trap in self._traps:
            if trap.matches(message, copied=copied):
                self._traps.remove(trap)
                return trap
        return None

    async def pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        """Forward `data` as slowly as the faults in force demand."""
        await self._flowing.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        start = 0
        while start < len(data):
            bit_bytes = self.trickle_bytes  # may end in the middle
            end = len(data) if bit_bytes is None else start + bit_bytes
            writer.write(data[start:end])
            await writer.drain()
            start = end
            if bit_bytes is not None:
                await asyncio.sleep(0.001)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_total += 1
        if self.refusing:
            _reset(writer)
            return
        await self._flowing.wait()
        try:
            up_reader, up_writer = await asyncio.open_connection(*self.target, limit=4 << 20)
        except OSError:
            _reset(writer)
            return
        opening = self._openings.pop(0) if self._openings else None
        connection = _Connection(self, (reader, writer), (up_reader, up_writer), opening)
        self._live.add(connection)
        try:
            await connection.run(postgres=self._postgres)
        finally:
            self._live.discard(connection)


class _Connection:
    """One client connection and its twin to the server."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        opening: tuple[int, Trap] | None,
    ) -> None:
        self._proxy = proxy
        self._opening = opening
        self._client_reader, self._client_writer = client
        self._server_reader, self._server_writer = server
        self._awaiting_reply: MessageTrap | None = None
        self._copied = False
        self._silent = asyncio.Event()
        self.ended = asyncio.Event()

    async def run(self, *, postgres: bool) -> None:
        pumps = (self._pump_frontend, self._pump_backend) if postgres else (self._up, self._down)
        tasks = [asyncio.create_task(pump()) for pump in pumps]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self.cut()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self.ended.set()
        for task in tasks:
            if not task.cancelled():
                task.result()  # a defect of the proxy must not pass for one of the proxied

    def cut(self) -> None:
        _reset(self._client_writer)
        _reset(self._server_writer)

    def fall_silent(self) -> None:
        self._silent.set()

    @contextlib.contextmanager
    def _resets_passed_on(self) -> Iterator[None]:
        """Reset both sides when one is reset; a hole passes nothing on."""
        try:
            yield
        except OSError:  # ENOTCONN of a half-close is no ConnectionError
            if not self._silent.is_set():
                self.cut()

    async def _up(self) -> None:
        if self._opening is None:
            await self._pump(self._client_reader, self._server_writer)
        else:
            await self._cut_opening(*self._opening)

    async def _cut_opening(self, left: int, trap: Trap) -> None:
        with self._resets_passed_on():
            while left and (data := await self._client_reader.read(min(left, _PIECE_BYTES))):
                await self._proxy.pass_on(data, self._server_writer)
                left -= len(data)
            self.cut()
            if not left:
                trap.spring("cut")

    async def _down(self) -> None:
        await self._pump(self._server_reader, self._client_writer, answers=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        with self._resets_passed_on():
            while data := await reader.read(_PIECE_BYTES):
                if not (answers and self._proxy.muted):
                    await self._proxy.pass_on(data, writer)
            writer.write_eof()

    async def _pump_frontend(self) -> None:
        messages = FrontendReader()
        with self._resets_passed_on():
            while data := await self._client_reader.read(_PIECE_BYTES):
                pending = bytearray()
                for message in messages.feed(data):
                    if message.code in (SSL_REQUEST, GSS_REQUEST):
                        self._client_writer.write(b"N")  # encrypted, it could not be read
                        continue
                    trap = self._proxy.sprung_by(message, copied=self._copied)
                    if message.kind == "c":
                        self._copied = True
                    elif message.sql[:6].upper() in ("COMMIT", "ROLLBA"):
                        self._copied = False
                    if trap is None or trap.moment is not Moment.BEFORE:
                        pending += message.raw
                    if trap is not None and trap.moment is Moment.REPLY:
                        # What follows is still forwarded: a Sync makes the server reply.
                        self._awaiting_reply = trap
                    elif trap is not None:
                        await self._forward(pending)
                        self._act(trap, trap.moment.value)
                await self._forward(pending)
            if not self._silent.is_set():  # into a hole no FIN travels either
                self._server_writer.write_eof()

    async def _forward(self, pending: bytearray) -> None:
        """Send what is pending to the server and forget it; into a hole nothing goes."""
        if pending and not self._silent.is_set():
            await self._proxy.pass_on(bytes(pending), self._server_writer)
        pending.clear()

    async def _pump_backend(self) -> None:
        tags = BackendReader()
        with self._resets_passed_on():
            while data := await self._server_reader.read(_PIECE_BYTES):
                seen = tags.feed(data)
                trap = self._awaiting_reply
                if trap is not None and not self._silent.is_set():
                    if not seen:
                        continue  # part of the reply that is to be dropped
                    self._act(trap, seen[-1])
                if self._silent.is_set():
                    continue
                await self._proxy.pass_on(data, self._client_writer)
            if not self._silent.is_set():
                self._client_writer.write_eof()

    def _act(self, trap: MessageTrap, outcome: str) -> None:
        if trap.fault is Fault.CUT:
            self.cut()
        else:
            self.fall_silent()
        trap.spring(outcome)


class ThreadedProxy:
    """A Proxy in a thread of its own, for synchronous tests.

    `call(method, …)` runs a method of the Proxy in its loop and returns its result.
    """

    def __init__(self, host: str, port: int, *, postgres: bool = False) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def make() -> Proxy:
            proxy = Proxy(host, port, postgres=postgres)
            await proxy.start()
            return proxy

        self.proxy = asyncio.run_coroutine_threadsafe(make(), self._loop).result(10)
        self.address = self.proxy.address

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        async def run() -> Any:
            return method(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.proxy.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextlib.contextmanager
def proxy_in_thread(host: str, port: int, *, postgres: bool = False) -> Iterator[ThreadedProxy]:
    """Yield a running ThreadedProxy."""
    proxy = ThreadedProxy(host, port, postgres=postgres)
    try:
        yield proxy
    finally:
        proxy.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.proxy",
        description="Forwards to HOST:PORT. Reads commands from stdin, one a line: cut, hold, "
        "release, refuse, accept, `delay SECONDS`. Prints its address first.",
    )
    parser.add_argument("target", metavar="HOST:PORT")
    host, port = parser.parse_args().target.rsplit(":", 1)
    async with Proxy(host, int(port)) as proxy:
        print(proxy.address, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            match line.split():
                case ["cut"]:
                    proxy.cut()
                case ["hold"]:
                    proxy.hold()
                case ["release"]:
                    proxy.release()
                case ["refuse"] | ["accept"]:
                    proxy.refusing = line.startswith("refuse")
                case ["delay", seconds]:
                    proxy.delay_s = float(seconds)


if __name__ == "__main__":
    asyncio.run(_main())
