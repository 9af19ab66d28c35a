"""Many sessions' batches become few large flushes. Pure: no I/O, no clock.

Rules it holds to:

1. A session is in at most one flush at a time, and its batches leave in order:
   whole prefix or nothing.
2. Sessions are served in the order in which they became ready; a session that was
   served goes to the back. So no stream starves another.
3. `take` never returns more than `points_max` points, except for a single batch
   that is larger by itself. Large is good: the busier the gateway, the longer the
   chunks and the cheaper each point. A batch without points, which is mostly one of
   metadata, counts one for every 8 bytes: an entry like 25 points and more.
4. Runs that reject late points get flushes of their own: deciding what is late
   needs locks that no other run should wait for. While both kinds are ready, they
   take turns.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from gateway.ingest.session import Batch, Session

_BYTES_LIKE_A_POINT: Final = 8  # of a batch without points; see rule 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """What a flush takes of one session."""

    session: Session
    batches: tuple[Batch, ...]
    points: int
    size_bytes: int

    @property
    def first_sequence(self) -> int:
        """The first record."""
        return self.batches[0].first_sequence

    @property
    def last_sequence(self) -> int:
        """The last record."""
        return self.batches[-1].last_sequence

    def only(self, batches: tuple[Batch, ...]) -> "Portion":
        """Return some of its batches as a portion."""
        return Portion(
            session=self.session,
            batches=batches,
            points=sum(len(batch.value) for batch in batches),
            size_bytes=sum(batch.size_bytes for batch in batches),
        )


class Coalescer:
    """The batches that wait for a flush.

    Attributes:
        pending_points: points admitted and not yet taken.
    """

    __slots__ = ("_points_max", "_ready", "_ready_rejecting", "_rejecting_next", "pending_points")

    def __init__(self, *, points_max: int) -> None:
        self._points_max = points_max
        self._ready: deque[Session] = deque()
        self._ready_rejecting: deque[Session] = deque()
        self._rejecting_next = True
        self.pending_points = 0

    @property
    def ready(self) -> int:
        """How many sessions wait for `take`."""
        return len(self._ready) + len(self._ready_rejecting)

    def admitted(self, session: Session, points: int) -> None:
        """Note that a batch was appended to `session.pending`."""
        self.pending_points += points
        self._enqueue(session)

    def take(self) -> list[Portion]:
        """Return the next flush; empty when nothing is ready."""
        if self._rejecting_next:
            queue = self._ready_rejecting or self._ready
        else:
            queue = self._ready or self._ready_rejecting
        self._rejecting_next = queue is self._ready
        portions: list[Portion] = []
        room = self._points_max
        while queue and room > 0:
            session = queue[0]
            found = self._portion(session, room, force=not portions)
            if found is None:
                break
            queue.popleft()
            session.queued = False
            session.in_flight = True
            portion, room = found
            portions.append(portion)
        return portions

    def release(self, session: Session) -> None:
        """Note that the flush which held the session is over."""
        session.in_flight = False
        if session.pending and session.ending is None:
            self._enqueue(session)

    def forget(self, session: Session) -> int:
        """Drop what a failed session has pending; return its points."""
        points = sum(len(batch.value) for batch in session.pending)
        self.pending_points -= points
        session.pending.clear()
        if session.queued:
            session.queued = False
            for queue in (self._ready, self._ready_rejecting):
                if session in queue:
                    queue.remove(session)
        return points

    def _enqueue(self, session: Session) -> None:
        if session.queued or session.in_flight:
            return
        session.queued = True
        queue = self._ready_rejecting if session.writer.rejects_late else self._ready
        queue.append(session)

    def _portion(self, session: Session, room: int, *, force: bool) -> tuple[Portion, int] | None:
        """Return what fits of a session, and the room that is left."""
        batches: list[Batch] = []
        points = size_bytes = 0
        while session.pending:
            batch = session.pending[0]
            more = len(batch.value)
            weight = more or batch.size_bytes // _BYTES_LIKE_A_POINT
            if weight > room and not (force and not batches):
                break
            batches.append(session.pending.popleft())
            points += more
            size_bytes += batch.size_bytes
            room -= weight
        if not batches:
            return None
        self.pending_points -= points
        portion = Portion(
            session=session, batches=tuple(batches), points=points, size_bytes=size_bytes
        )
        return portion, room
