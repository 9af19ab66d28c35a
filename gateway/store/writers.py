"""Writers in PostgreSQL: opened under a new epoch, finished, moved past lost records.

What a stream needs once; its points go through `flush_transaction`. Every error
leaves here as a HeadraceError.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final
from uuid import UUID

import asyncpg

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.flush import Counters, Mismatch, OpenedWriter, OpenRequest, SummaryRows
from gateway.store.connections import Database
from gateway.store.flush_transaction import IngestConnection, mismatch
from gateway.store.queries import load
from gateway.store.rejections import samples_from_json

_SQL: Final = load("metrics")
_LATE_POLICY_REJECT: Final = 2
_OPEN_TIMEOUT_S: Final = 30.0


class WriterStore:
    """Writers and their flush connections, over one Database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def flush_connections(self) -> list["IngestConnection"]:
        """Return the ingest connections of the budget."""
        return [IngestConnection(slot, self._database) for slot in self._database.ingest]

    async def open_writer(self, request: OpenRequest) -> OpenedWriter:
        """Open a writer under a new epoch.

        Waits for a flush of the writer that is under way, so that the watermark it
        returns is final for all earlier epochs.

        Raises:
            HeadraceError: RUN_NOT_FOUND, RUN_PURGED, RESUME_STEP_MISMATCH,
                WRITER_CLAIMED, WRITER_MISMATCH, STORE_UNAVAILABLE.
        """
        async with (
            self._database.query(timeout_s=_OPEN_TIMEOUT_S) as connection,
            # What is announced of an attempt may be refused after all; the rest is one statement.
            nullcontext() if request.resume_step is None else connection.transaction(),
        ):
            row = await connection.fetchrow(
                _SQL["open_writer"],
                request.run_id,
                request.workspace_id,
                request.writer_id,
                request.incarnation,
                request.rank,
                request.attempt,
                request.resume_step,
                list(request.resume_exempt_keys),
            )
            if row is None:
                raise HeadraceError(
                    Reason.RUN_NOT_FOUND,
                    f"no run {request.run_id.hex}; create it with RunService.CreateRun first",
                    field="open.run_id",
                    value=request.run_id.hex,
                )
            if row["purged"]:
                raise _purged(request)
            if row["epoch"] is None:
                raise await _open_refusal(connection, request)
            if request.resume_step is not None and not row["begun"]:
                await _agree_on_resume_step(connection, request)
            # No older epoch can add to them any more.
            blocks = (
                await connection.fetch(_SQL["writer_summaries"], request.run_id, row["writer_no"])
                if row["committed_sequence"] > 0
                else []
            )
        return OpenedWriter(
            run_id=request.run_id,
            writer_id=request.writer_id,
            writer_no=row["writer_no"],
            rank=request.rank,
            attempt=request.attempt,
            epoch=row["epoch"],
            committed_sequence=row["committed_sequence"],
            finished=row["finished"],
            rejects_late=row["late_policy"] == _LATE_POLICY_REJECT,
            counters=Counters(
                accepted_points=row["accepted_points"],
                late_points=row["late_points"],
                repeated_points=row["repeated_points"],
                rejected_points=row["rejected_points"],
                lost_records=row["lost_records"],
                rejected_entries=row["rejected_entries"],
            ),
            rejections=samples_from_json(row["rejections"]),
            summaries=SummaryRows(
                series_ids=[item for block in blocks for item in block["series_ids"]],
                point_counts=[item for block in blocks for item in block["point_counts"]],
                last_steps=[item for block in blocks for item in block["last_steps"]],
                last_times=[item for block in blocks for item in block["last_times"]],
                last_values=[item for block in blocks for item in block["last_values"]],
                min_values=[item for block in blocks for item in block["min_values"]],
                max_values=[item for block in blocks for item in block["max_values"]],
            ),
        )

    async def finish_writer(self, writer: OpenedWriter, last_sequence: int) -> Mismatch | None:
        """Mark a writer finished, unless its epoch or watermark moved. Idempotent."""
        return await self._update(_SQL["finish_writer"], writer, last_sequence)

    async def resync_writer(self, writer: OpenedWriter, first_sequence: int) -> Mismatch | None:
        """Move a watermark forward over lost records, unless the epoch moved."""
        return await self._update(_SQL["resync_writer"], writer, first_sequence)

    async def _update(self, sql: str, writer: OpenedWriter, sequence: int) -> Mismatch | None:
        async with self._database.query() as connection:
            if await connection.fetchval(
                sql, writer.run_id, writer.writer_id, writer.epoch, sequence
            ):
                return None
            return await mismatch(connection, writer)

    async def touch_runs(self, run_ids: Sequence[UUID]) -> None:
        """Note that the runs are alive; `run_ids` ascending."""
        async with self._database.query() as connection:
            await connection.execute(_SQL["touch_runs"], list(run_ids))
            await connection.execute(_SQL["revive_runs"], list(run_ids))


async def _agree_on_resume_step(connection: asyncpg.Connection, request: OpenRequest) -> None:
    """Announce the resume step of an attempt that began without one, or compare it."""
    if await connection.fetchval(
        _SQL["announce_resume_step"],
        request.run_id,
        request.attempt,
        request.resume_step,
        list(request.resume_exempt_keys),
    ):
        return
    # Another rank announced one, maybe while this statement waited for it.
    announced = await connection.fetchval(_SQL["get_attempt"], request.run_id, request.attempt)
    if announced != request.resume_step:
        raise HeadraceError(
            Reason.RESUME_STEP_MISMATCH,
            f"attempt {request.attempt} of run {request.run_id.hex} resumes at step "
            f"{announced} for one writer and at {request.resume_step} for this one; "
            "all ranks of an attempt must restore the same checkpoint",
            field="open.resume_step",
            value=request.resume_step,
            announced=announced,
        )


async def _open_refusal(connection: asyncpg.Connection, request: OpenRequest) -> HeadraceError:
    known = await connection.fetchrow(_SQL["get_writer"], request.run_id, request.writer_id)
    if known is None:
        return _purged(request)  # a moment ago, with its writers
    if known["incarnation"] != request.incarnation:
        return HeadraceError(
            Reason.WRITER_CLAIMED,
            f"the writer id {request.writer_id.hex} belongs to another spool; "
            "a process needs a writer id of its own",
            field="open.incarnation",
            value=request.incarnation.hex,
        )
    return HeadraceError(
        Reason.WRITER_MISMATCH,
        f"the writer {request.writer_id.hex} was opened as rank {known['rank']} of attempt "
        f"{known['attempt']}, not as rank {request.rank} of attempt {request.attempt}",
        field="open.rank" if known["rank"] != request.rank else "open.attempt",
        value=request.rank if known["rank"] != request.rank else request.attempt,
        limit=known["rank"] if known["rank"] != request.rank else known["attempt"],
    )


def _purged(request: OpenRequest) -> HeadraceError:
    return HeadraceError(
        Reason.RUN_PURGED,
        f"the run {request.run_id.hex} was purged and takes no more points",
        field="open.run_id",
        value=request.run_id.hex,
    )
