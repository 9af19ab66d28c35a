"""The fixed set of database connections of one gateway process.

What it promises: the number of this process's backends in PostgreSQL never
exceeds `ingest_connections + query_connections`, backends that are still dying
included. A connection that broke is replaced only when its old backend is gone:
another live connection terminates it by pid and start time and waits until
`pg_stat_activity` no longer shows it. When no connection is live (the database
restarted, or the network swallowed them all), the replacement ends its
predecessor as its first act. Nothing else opens connections.

Ingest connections are lent for life to writer tasks (`Database.ingest`); query
connections are shared by everything else, one caller at a time
(`Database.query()`). Driver errors leave this module only as domain errors.
"""

import asyncio
import contextlib
import random
import socket
from collections import deque
from collections.abc import AsyncIterator

import asyncpg
import structlog

from gateway.domain.errors import HeadraceError, Reason, StoreUnavailableError

_LOG = structlog.get_logger(__name__)

_CONNECT_TIMEOUT_S = 10.0
_GONE_TIMEOUT_S = 10.0
_GONE_POLL_S = 0.01
_SEND_BUFFER_BYTES = 4 * 1024 * 1024  # one COPY piece and more: fewer wake-ups of the event loop
_QUERY_TIMEOUT_S = 60.0
_ROLLBACK_TIMEOUT_S = 5.0  # of a block whose time was up
_PEER_TIMEOUT_MS = 10_000  # bytes unacknowledged for so long: the network swallowed the peer
_INGEST_TIMEOUT_S = 30.0
# A peer that is mute, whatever the cause, is given up after this, its backend ended
# and the flush tried again; nothing is lost by giving up too early.
_HELPER_TIMEOUT_S = 5.0

_SESSION_SETTINGS = {
    # A peer that vanished without a word must not keep row locks: the kernel
    # gives up on unacknowledged bytes, PostgreSQL on an idle transaction, and a
    # running statement notices a closed socket.
    "tcp_user_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "idle_in_transaction_session_timeout": "30s",
    "client_connection_check_interval": "2s",
    "jit": "off",
    "TimeZone": "UTC",
}

CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    EOFError,
)
"""What the driver raises when the connection, not the statement, is at fault."""


def translate(error: BaseException) -> HeadraceError:
    """Return the domain error for a driver error; the caller chains it."""
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, TimeoutError | asyncpg.QueryCanceledError | asyncpg.LockNotAvailableError):
        return StoreUnavailableError(
            "the database took too long to answer; the call may be repeated"
        )
    if isinstance(error, CONNECTION_LOST):
        return StoreUnavailableError("the database cannot be reached; the call may be repeated")
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if state[:2] in {"40", "53", "55", "57", "25"}:
            return StoreUnavailableError(f"the database refused for now (SQLSTATE {state})")
    return HeadraceError(Reason.INTERNAL, "the database refused a statement of the gateway")


class Slot:
    """One place of the budget: a connection, or the memory of the one that broke."""

    __slots__ = ("_backend", "_database", "_statement_timeout_s", "connection")

    def __init__(self, database: "Database", *, statement_timeout_s: float | None = None) -> None:
        self._database = database
        self._statement_timeout_s = statement_timeout_s
        self.connection: asyncpg.Connection | None = None
        self._backend: tuple[int, str] | None = None  # pid and start of the last backend

    @property
    def live(self) -> bool:
        """Whether the slot has a connection that is not known to be broken."""
        return self.connection is not None and not self.connection.is_closed()

    @property
    def backend(self) -> tuple[int, str] | None:
        """The pid and start time of the slot's last backend, if it may still exist."""
        return self._backend

    def discard(self) -> None:
        """Drop the connection at once; its backend may take a while to notice."""
        if self.connection is not None:
            self.connection.terminate()
            self.connection = None

    def forget_backend(self) -> None:
        """Note that the slot's last backend is gone."""
        self._backend = None

    async def ensure(self) -> asyncpg.Connection:
        """Return the live connection, making a new one if need be.

        Raises:
            StoreUnavailableError: the database cannot be reached now.
        """
        if self.live:
            assert self.connection is not None  # noqa: S101 - narrows `live`
            return self.connection
        self.connection = None
        async with self._database.reviving:
            await self._database.wait_until_gone(self)
            connection: asyncpg.Connection | None = None
            try:
                connection = await self._database.connect_one(self._statement_timeout_s)
                await end_backend(self, through=connection)
                row = await connection.fetchrow(
                    "SELECT pid, backend_start::text AS start FROM pg_stat_activity"
                    " WHERE pid = pg_backend_pid()"
                )
            except BaseException as error:
                if connection is not None:
                    connection.terminate()
                if isinstance(error, (*CONNECTION_LOST, TimeoutError, asyncpg.PostgresError)):
                    raise translate(error) from error
                raise
            self._backend = (row["pid"], row["start"])
            self.connection = connection
            return connection


class Database:
    """The connections of one gateway process. Make it with `Database.connect`."""

    def __init__(
        self,
        dsn: str,
        *,
        ingest_connections: int,
        query_connections: int,
        ingest_timeout_s: float,
        application_name: str,
    ) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self.ingest: tuple[Slot, ...] = tuple(
            Slot(self, statement_timeout_s=ingest_timeout_s) for _ in range(ingest_connections)
        )
        self._query_slots = tuple(Slot(self) for _ in range(query_connections))
        self._idle: deque[Slot] = deque(self._query_slots)
        self._idle_changed = asyncio.Condition()
        self.reviving = asyncio.Lock()
        self._closed = False

    @classmethod
    async def connect(
        cls,
        dsn: str,
        *,
        ingest_connections: int,
        query_connections: int,
        ingest_timeout_s: float = _INGEST_TIMEOUT_S,
        application_name: str = "headrace-gateway",
    ) -> "Database":
        """Open every connection of the budget.

        Raises:
            StoreUnavailableError: the database cannot be reached.
        """
        database = cls(
            dsn,
            ingest_connections=ingest_connections,
            query_connections=query_connections,
            ingest_timeout_s=ingest_timeout_s,
            application_name=application_name,
        )
        try:
            for slot in (*database._query_slots, *database.ingest):
                await slot.ensure()
        except BaseException:
            await database.close()
            raise
        return database

    @property
    def connections_budget(self) -> int:
        """The most backends this process ever has."""
        return len(self.ingest) + len(self._query_slots)

    @property
    def connections_live(self) -> int:
        """The connections that are open now."""
        return sum(slot.live for slot in (*self.ingest, *self._query_slots))

    @contextlib.asynccontextmanager
    async def query(
        self, *, timeout_s: float = _QUERY_TIMEOUT_S
    ) -> AsyncIterator[asyncpg.Connection]:
        """Lend one of the query connections; first come, first served.

        A block that is cancelled, times out or loses its connection leaves no
        statement running: the connection is dropped and replaced at the next use.

        Args:
            timeout_s: for waiting and the block together.

        Raises:
            HeadraceError: in place of any driver error raised in the block.
        """
        slot: Slot | None = None
        giving_up: asyncio.TimerHandle | None = None
        clean = False
        try:
            async with asyncio.timeout(timeout_s):
                slot = await self._acquire()
                connection = await slot.ensure()
                # The timeout cancels once; a transaction then waits for the answer to its
                # ROLLBACK, from a mute peer for ever. Only losing the connection ends that.
                giving_up = asyncio.get_running_loop().call_later(
                    timeout_s + _ROLLBACK_TIMEOUT_S, slot.discard
                )
                yield connection
            clean = True
        except HeadraceError:
            clean = slot is not None and slot.live and not _busy(slot.connection)
            raise
        except (*CONNECTION_LOST, TimeoutError) as error:
            raise translate(error) from error
        except asyncpg.PostgresError as error:
            clean = slot is not None and slot.live and not _busy(slot.connection)
            _LOG.warning("statement failed", sqlstate=error.sqlstate, error=str(error))
            raise translate(error) from error
        finally:
            if giving_up is not None:
                giving_up.cancel()
            if slot is not None:
                if not clean:
                    slot.discard()
                await self._release(slot)

    async def connect_one(self, statement_timeout_s: float | None) -> asyncpg.Connection:
        """Open a connection; for `Slot` only."""
        if self._closed:
            raise StoreUnavailableError("the gateway is stopping")
        connection: asyncpg.Connection = await asyncpg.connect(
            self._dsn,
            timeout=_CONNECT_TIMEOUT_S,
            command_timeout=statement_timeout_s,
            server_settings={**_SESSION_SETTINGS, "application_name": self._application_name},
        )
        transport = connection._transport
        raw = transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            if raw.family != socket.AF_UNIX:
                with contextlib.suppress(OSError, AttributeError):  # AttributeError: not Linux
                    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _PEER_TIMEOUT_MS)
        return connection

    async def wait_until_gone(self, broken: Slot) -> None:
        """Return when the slot's old backend no longer counts against the budget.

        It is ended through any idle live connection. When there is none, the
        database has most likely restarted: a short wait covers backends that are
        on their way out, and the slot's next connection makes sure.
        """
        if broken.backend is None:
            return
        helper = next((slot for slot in self._idle if slot.live), None)
        if helper is None:
            others_live = any(slot.live for slot in (*self._query_slots, *self.ingest))
            await asyncio.sleep(0.25 if others_live else 0.1 + random.random() * 0.1)
            return
        self._idle.remove(helper)
        try:
            await _end_through(helper, broken)
        finally:
            await self._release(helper)

    async def _acquire(self) -> Slot:
        async with self._idle_changed:
            try:
                await self._idle_changed.wait_for(lambda: bool(self._idle))
            except BaseException:
                self._idle_changed.notify()  # it may have been told: the next one must hear of it
                raise
            # A live one if there is one: a broken one costs its taker a reconnect.
            slot = next((slot for slot in self._idle if slot.live), self._idle[0])
            self._idle.remove(slot)
            return slot

    async def _release(self, slot: Slot) -> None:
        self._idle.append(slot)
        async with self._idle_changed:
            self._idle_changed.notify()

    async def close(self) -> None:
        """Close every connection, politely for at most two seconds."""
        self._closed = True
        for slot in (*self._query_slots, *self.ingest):
            connection, slot.connection = slot.connection, None
            if connection is not None and not connection.is_closed():
                try:
                    await connection.close(timeout=2)
                except (*CONNECTION_LOST, TimeoutError, asyncpg.PostgresError):
                    connection.terminate()


async def end_backend(broken: Slot, *, through: asyncpg.Connection) -> None:
    """End the old backend of `broken`, if it may still exist, and wait until it is gone.

    Raises:
        StoreUnavailableError: it did not go away in time.
        Exception: of the driver, about `through`.
    """
    if broken.backend is None:
        return
    pid, start = broken.backend
    deadline = asyncio.get_running_loop().time() + _GONE_TIMEOUT_S
    while await through.fetchval(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid = $1 AND backend_start = $2::text::timestamptz",
        pid,
        start,
        timeout=_HELPER_TIMEOUT_S,
    ):
        if asyncio.get_running_loop().time() > deadline:
            raise StoreUnavailableError(f"the old database backend {pid} does not end")
        await asyncio.sleep(_GONE_POLL_S)
    broken.forget_backend()


async def _end_through(helper: Slot, broken: Slot) -> None:
    assert helper.connection is not None  # noqa: S101 - the caller chose a live one
    try:
        await end_backend(broken, through=helper.connection)
    except (*CONNECTION_LOST, TimeoutError, asyncpg.PostgresError) as error:
        helper.discard()
        raise translate(error) from error
    except asyncio.CancelledError:
        helper.discard()  # in the middle of a statement
        raise


def _busy(connection: asyncpg.Connection | None) -> bool:
    return connection is not None and connection.is_in_transaction()
