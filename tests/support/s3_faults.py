"""An HTTP proxy before a real S3 server that misbehaves on chosen requests.

It forwards bytes while they arrive, with the signed headers as they are, so
that signatures stay valid. A `Fault` applies to the requests it matches, as
often as it says; every request is recorded.
"""

import asyncio
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

_PIECE_BYTES = 65_536


@dataclass(slots=True, kw_only=True)
class Fault:
    """What to do with matching requests.

    Attributes:
        method: of the requests, for example `PUT`; empty: any.
        query: a name that must be in the query, for example `partNumber`.
        times: how often; None: always.
        status, code: answered instead of asking the server, when `status` is set.
        cut_after_bytes: of the body that goes to the server; then both
            connections are cut.
        damage: a byte of the body arrives wrong, whichever way it goes.
        lose_answer: the server executes the request and nobody hears of it.
        delay_s: between pieces of the body, both ways; they have 15 to 64 KiB.
        bytes_per_s: of the body that goes to the server; 0: as fast as it comes.
        omit: the name of XML elements that are taken out of the answer.
        probes: whether it applies to the doctor's own objects too.
        hits: how often it applied.
    """

    method: str = ""
    query: str = ""
    times: int | None = None
    status: int = 0
    code: str = ""
    cut_after_bytes: int | None = None
    damage: bool = False
    lose_answer: bool = False
    delay_s: float = 0.0
    bytes_per_s: int = 0
    omit: str = ""
    probes: bool = False
    hits: int = 0

    def takes(self, method: str, path: str, query: Any) -> bool:
        if "/probe/" in path and not self.probes:
            return False
        if self.method not in ("", method) or (self.query and self.query not in query):
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request that passed."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int


@dataclass(slots=True, kw_only=True)
class S3Faults:
    """The proxy; `faults` and `target` may be changed at any time."""

    target: str
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    under_way: int = 0
    """Requests that have not ended, also those whose caller is gone."""

    def requests(self, method: str, query: str = "") -> list[Seen]:
        """Return the requests of a method, with a name in the query; not the doctor's."""
        return [
            each
            for each in list(self.seen)
            if each.method == method
            and (not query or query in each.query)
            and "/probe/" not in each.path
        ]

    def reads(self) -> list[Seen]:
        """Return the requests that read an object."""
        return [each for each in self.requests("GET") if not each.query]

    def parts_stored(self) -> list[int]:
        """Return the numbers of the parts that the server took, in order of time."""
        return [
            int(each.query["partNumber"])
            for each in self.requests("PUT", "partNumber")
            if each.status == 200
        ]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        try:
            return await self._forward(request)
        finally:
            self.under_way -= 1

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        fault = next(
            (f for f in self.faults if f.takes(request.method, request.path, request.query)),
            Fault(),
        )
        if fault.status:
            await request.read()
            self._saw(request, fault.status)
            return web.Response(
                status=fault.status,
                body=f"<Error><Code>{fault.code}</Code><Message>made up</Message></Error>",
                content_type="application/xml",
            )
        target = urlsplit(self.target)
        url = f"{target.scheme}://{target.netloc}{request.raw_path}"
        headers = {name: value for name, value in request.headers.items() if name != "Expect"}
        sized = request.content_length is not None and request.content_length > 0

        async def body() -> Any:
            sent = 0
            async for piece in request.content.iter_chunked(_PIECE_BYTES):
                pace_s = len(piece) / fault.bytes_per_s if fault.bytes_per_s else 0
                await asyncio.sleep(fault.delay_s + pace_s)
                sent += len(piece)
                if fault.cut_after_bytes is not None and sent > fault.cut_after_bytes:
                    raise ConnectionResetError
                yield _damaged(piece) if fault.damage and sent == len(piece) else piece

        connector = TCPConnector(force_close=True)
        async with ClientSession(
            connector=connector, auto_decompress=False, timeout=ClientTimeout(None)
        ) as session:
            try:
                async with session.request(
                    request.method,
                    _raw(url),
                    headers=headers,
                    data=body() if sized else None,
                    allow_redirects=False,
                ) as answer:
                    self._saw(request, answer.status)
                    if fault.lose_answer:
                        await answer.read()
                        raise ConnectionResetError
                    return await self._relay(request, answer, fault)
            except (ClientError, ConnectionError):
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError from None

    async def _relay(self, request: web.Request, answer: Any, fault: Fault) -> web.StreamResponse:
        if fault.omit:
            elements = rf"<{fault.omit}>.*?</{fault.omit}>".encode()
            return web.Response(
                status=answer.status,
                body=re.sub(elements, b"", await answer.read()),
                content_type="application/xml",
            )
        response = web.StreamResponse(status=answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in {"transfer-encoding", "connection"}:
                response.headers[name] = value
        await response.prepare(request)
        sent = 0
        if request.method != "HEAD":
            async for piece in answer.content.iter_chunked(_PIECE_BYTES):
                await asyncio.sleep(fault.delay_s)
                sent += len(piece)
                cut = fault.cut_after_bytes
                if request.method == "GET" and cut is not None and sent > cut:
                    raise ConnectionResetError
                first = sent == len(piece)
                await response.write(_damaged(piece) if fault.damage and first else piece)
            await response.write_eof()
        return response

    def _saw(self, request: web.Request, status: int) -> None:
        self.seen.append(
            Seen(
                method=request.method,
                path=request.path,
                query=dict(request.query),
                headers={name.lower(): value for name, value in request.headers.items()},
                status=status,
            )
        )


def _damaged(piece: bytes) -> bytes:
    return bytes([piece[0] ^ 1]) + piece[1:]


def _raw(url: str) -> Any:
    from yarl import URL

    return URL(url, encoded=True)


@contextmanager
def s3_faults(target: str, *, tls: ssl.SSLContext | None = None) -> Iterator[S3Faults]:
    """Run a proxy before the server at `target` in a thread of its own; with `tls`, over HTTPS."""
    proxy = S3Faults(target=target)
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stopping = asyncio.Event()

    async def serve() -> None:
        application = web.Application(client_max_size=2**40)
        application.router.add_route("*", "/{path:.*}", proxy._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        proxy.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        ready.set()
        await stopping.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(10)
        loop.close()
