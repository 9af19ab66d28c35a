"""The ingest engine of one gateway process: sessions, coalescer, writers, budgets.

`rpc` opens sessions and feeds them; writer tasks flush them. The flush rule is
self-clocking: a writer that becomes free takes everything pending up to a cap. It waits
when nothing is pending, then a few ms more to gather company; and before a small flush,
in proportion to what the last one took (docs/decisions/0013).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import structlog

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.flush import Mismatch, OpenedWriter, OpenRequest
from gateway.ingest.budget import PendingBytes
from gateway.ingest.coalescer import Coalescer, Portion
from gateway.ingest.session import Batch, Session
from gateway.ingest.writer import FlushConnection, Writer
from gateway.telemetry import METRICS

_LOG = structlog.get_logger(__name__)

_HEARTBEAT_PERIOD_S = 10.0
_COMPANY_POINTS = 131_072
_COMPANY_WAIT_S = 0.008
_SMALL_POINTS = 8_192
_SMALL_SESSIONS = 16
"""A flush of fewer points of fewer sessions costs about the same whatever it holds."""
_PACE = 2.5
"""How many durations of a flush after it began the next small one begins."""
_PACE_MAX_S = 0.025
"""At most so long after: a commit that takes longer gathers enough by itself."""


class WriterStore(Protocol):
    """What the engine needs of the store, besides flush connections."""

    async def open_writer(self, request: OpenRequest) -> OpenedWriter:
        """Open a writer: a new epoch, and its watermark after whatever was in flight."""

    async def finish_writer(self, writer: OpenedWriter, last_sequence: int) -> Mismatch | None:
        """Mark the writer finished, unless its row does not match."""

    async def resync_writer(self, writer: OpenedWriter, first_sequence: int) -> Mismatch | None:
        """Move the watermark to first_sequence - 1, unless the writer's row does not match."""

    async def touch_runs(self, run_ids: Sequence[UUID]) -> None:
        """Note that the runs are alive."""

    def flush_connections(self) -> Sequence[FlushConnection]:
        """Return the connections for writers, one each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """Limits of the engine.

    Attributes:
        pending_bytes_max, stream_pending_bytes_max: admitted and uncommitted bytes.
        flush_points_max: points of one flush.
        flush_linger_ms: how long an idle writer gathers after the first batch.
        streams_max: open streams of this process, and calls that are about to open theirs.
    """

    pending_bytes_max: int = 256 * 1024 * 1024
    stream_pending_bytes_max: int = 16 * 1024 * 1024
    flush_points_max: int = 262_144
    flush_linger_ms: float = 2.0
    streams_max: int = 10_000


class IngestEngine:
    """Accepts sessions and flushes them until it is drained."""

    def __init__(self, store: WriterStore, *, settings: IngestSettings) -> None:
        self.settings = settings
        self._store = store
        self._sessions: set[Session] = set()
        self._by_writer: dict[tuple[UUID, UUID], Session] = {}
        self._alive: set[UUID] = set()
        self._coalescer = Coalescer(points_max=settings.flush_points_max)
        self._budget = PendingBytes(
            total_max=settings.pending_bytes_max, stream_max=settings.stream_pending_bytes_max
        )
        self._work = asyncio.Semaphore(0)
        self._idle_writers = 0
        self._gathering = False
        self._flushing: list[float] = []  # of each flush, when its oldest batch arrived
        self._longest_wait_s = 0.0
        self._last_began = self._pace_s = 0.0  # of flushes; until a small one may begin
        self._grown = asyncio.Event()  # what is pending is not small any more
        self._opening = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False
        self._quiet = asyncio.Event()

    # -- statistics -----------------------------------------------------------

    @property
    def streams(self) -> int:
        """Open streams."""
        return len(self._sessions)

    @property
    def pending_bytes(self) -> int:
        """Bytes admitted and not committed."""
        return self._budget.total

    @property
    def streams_waiting(self) -> int:
        """Streams that are not read because a byte budget is spent."""
        return self._budget.waiting

    def longest_wait_s(self) -> float:
        """How long a batch waited for its commit at most since this was last asked.

        Those that still wait count; 0 when there was none.
        """
        now = time.perf_counter()
        longest, self._longest_wait_s = self._longest_wait_s, 0.0
        return max((longest, *(now - arrived for arrived in self._flushing)))

    # -- life -----------------------------------------------------------------

    async def start(self) -> None:
        """Start the writer tasks."""
        for number, connection in enumerate(self._store.flush_connections()):
            writer = Writer(connection, ended=self._end_portion)
            task = asyncio.create_task(self._write(writer), name=f"ingest-writer-{number}")
            self._tasks.append(task)
        self._tasks.append(asyncio.create_task(self._beat(), name="ingest-heartbeats"))

    async def drain(self, deadline_s: float) -> bool:
        """Ask every client to reconnect and commit what was admitted.

        Returns:
            Whether everything admitted was committed within the deadline.
        """
        self._draining = True
        for session in list(self._sessions):
            session.drain()
            self._budget.wake(session)
        try:
            async with asyncio.timeout(deadline_s):
                while self._sessions or self._budget.total:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            _LOG.error(
                "drain deadline passed",
                streams=len(self._sessions),
                pending_bytes=self._budget.total,
            )
            return False
        return True

    async def close(self) -> None:
        """Stop the writer tasks. What is not committed stays with its clients. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- streams --------------------------------------------------------------

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Count a call that has no session yet as an open stream.

        Raises:
            HeadraceError: OVERLOADED.
        """
        if len(self._sessions) + self._opening >= self.settings.streams_max:
            METRICS.streams_refused.inc()
            raise HeadraceError(
                Reason.OVERLOADED,
                f"the gateway has {self.settings.streams_max} open streams, its maximum",
                field="streams_max",
                limit=self.settings.streams_max,
                retry_after_ms=5_000,
            )
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1

    async def open(self, request: OpenRequest, *, on_change: Callable[[], None]) -> Session:
        """Open the session of a call that is counted by `opening`.

        Raises:
            HeadraceError: DRAINING, or the store's refusal.
        """
        if self._stopping():
            raise HeadraceError(
                Reason.DRAINING, "the gateway is shutting down", retry_after_ms=1_000
            )
        session = Session(await self._store.open_writer(request), on_change=on_change)
        self._sessions.add(session)
        METRICS.streams.inc()
        self._alive.add(request.run_id)
        # Two streams of one writer in this process: fence the older at once
        # rather than at its next flush.
        name = (request.run_id, request.writer_id)
        other = self._by_writer.get(name)
        if other is None or other.writer.epoch < session.writer.epoch:
            self._by_writer[name] = session
            if other is not None:
                self._end(other, other.mismatched(Mismatch.FENCED))
        if self._stopping():
            session.drain()
        return session

    def _stopping(self) -> bool:
        return self._draining

    async def room(self, session: Session) -> None:
        """Return when the session may read its next message, or has ended."""
        await self._budget.room(session)

    def admit(self, session: Session, batch: Batch) -> None:
        """Admit a batch.

        Raises:
            HeadraceError: the batch breaks the contract.
        """
        if session.draining or session.ending is not None:
            return
        if session.admit(batch):
            self._budget.admit(batch.size_bytes)
            self._coalescer.admitted(session, len(batch.value))
            self._alive.add(session.writer.run_id)
            self._wake_writer()
            if not self._small():
                self._grown.set()
        else:
            METRICS.batches_discarded.inc()
            session.on_change()

    def heartbeat(self, session: Session) -> None:
        """Note that the client is alive; it is owed an ack."""
        self._alive.add(session.writer.run_id)
        session.heartbeat()

    async def finish(self, session: Session) -> None:
        """Finish the session's writer; everything before is committed already.

        Raises:
            HeadraceError: WRITER_FENCED, STORE_UNAVAILABLE.
        """
        mismatch = await self._store.finish_writer(session.writer, session.committed_sequence)
        if mismatch is not None:
            raise session.mismatched(mismatch)
        session.finished = True

    async def resync(self, session: Session, first_sequence: int) -> None:
        """Continue a writer at `first_sequence`; see Resync in the contract.

        Raises:
            HeadraceError: the message is not allowed here; WRITER_FENCED, STORE_UNAVAILABLE.
        """
        session.check_resync(first_sequence)
        mismatch = await self._store.resync_writer(session.writer, first_sequence)
        if mismatch is not None:
            raise session.mismatched(mismatch)
        session.resynced(first_sequence)

    def leave(self, session: Session) -> None:
        """Note that the stream is over. What it admitted is still committed."""
        if session in self._sessions:
            self._sessions.remove(session)
            METRICS.streams.dec()
        name = (session.writer.run_id, session.writer.writer_id)
        if self._by_writer.get(name) is session:
            del self._by_writer[name]
        self._quiet.set()

    # -- inside ---------------------------------------------------------------

    def _wake_writer(self) -> None:
        if self._idle_writers > 0 and not self._gathering:
            self._idle_writers -= 1
            self._gathering = True
            self._work.release()

    async def _write(self, writer: Writer) -> None:
        while True:
            await self._gather()
            portions = self._coalescer.take()
            if not portions:
                self._idle_writers += 1
                await self._work.acquire()
                await asyncio.sleep(self.settings.flush_linger_ms / 1000)
                self._gathering = False
                continue
            oldest = min(portion.batches[0].arrived for portion in portions)
            began = time.perf_counter()
            self._last_began = began
            self._flushing.append(oldest)
            try:
                await writer.flush(portions)
            except Exception:
                _LOG.exception("flush failed by a defect of the gateway")
                for portion in portions:
                    self._end(
                        portion.session,
                        HeadraceError(
                            Reason.INTERNAL, "the gateway failed to store a batch; see its log"
                        ),
                    )
            finally:
                ended = time.perf_counter()
                self._flushing.remove(oldest)
                self._longest_wait_s = max(self._longest_wait_s, ended - oldest)
                self._pace_s = min(_PACE * (ended - began), _PACE_MAX_S)
                for portion in portions:
                    self._coalescer.release(portion.session)
                    if portion.session.ending is not None:
                        self._drop_pending(portion.session)
                    elif portion.session.idle:
                        portion.session.settled()
                    self._budget.release(portion.size_bytes)
                if self._coalescer.ready:
                    self._wake_writer()
                METRICS.pending_bytes.set(self._budget.total)
                METRICS.streams_paused.set(self._budget.waiting)
                self._quiet.set()

    async def _gather(self) -> None:
        """Wait for company where a larger flush is worth it: it costs less a point."""
        if self._flushing and self._coalescer.pending_points < _COMPANY_POINTS:
            await asyncio.sleep(_COMPANY_WAIT_S)  # another writer keeps the store busy
        rest_s = self._last_began + self._pace_s - time.perf_counter()
        if rest_s > 0 and self._coalescer.ready and self._small():
            self._grown.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._grown.wait()

    def _small(self) -> bool:
        return (
            self._coalescer.ready < _SMALL_SESSIONS
            and self._coalescer.pending_points < _SMALL_POINTS
        )

    def _end_portion(self, portion: Portion, error: HeadraceError) -> None:
        portion.session.pending_bytes -= portion.size_bytes
        self._end(portion.session, error)

    def _end(self, session: Session, error: HeadraceError) -> None:
        session.end(error)
        if not session.in_flight:
            self._drop_pending(session)
        self._budget.wake(session)

    def _drop_pending(self, session: Session) -> None:
        size_bytes = sum(batch.size_bytes for batch in session.pending)
        self._coalescer.forget(session)
        session.pending_bytes -= size_bytes
        self._budget.release(size_bytes)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_PERIOD_S)
            alive, self._alive = self._alive, set()
            if alive:
                try:
                    await self._store.touch_runs(sorted(alive))
                except HeadraceError as error:
                    _LOG.warning("heartbeats not noted; the next ones may be", error=error.message)
                    self._alive |= alive
