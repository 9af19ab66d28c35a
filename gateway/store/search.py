"""Searches runs and experiments, page by page; see `search_sql` for how."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import asyncpg

from gateway.domain.errors import HeadraceError, Reason
from gateway.domain.experiments import Experiment
from gateway.domain.filters.syntax import Entity, Expression, Field, OrderTerm
from gateway.domain.runs import Run
from gateway.domain.searches import (
    Cursor,
    ExperimentSearch,
    Phase,
    RunSearch,
    Visibility,
)
from gateway.store.connections import Database
from gateway.store.experiments import read_experiments, resolve_experiments
from gateway.store.queries import load
from gateway.store.runs import read_runs
from gateway.store.search_sql import EXPERIMENTS, RUNS, Compiler, Target, compile_page, phases

_SQL: Final = load("search")
_ACTIVITY: Final = {
    Visibility.ACTIVE: "r.deleted_at IS NULL",
    Visibility.DELETED: "r.deleted_at IS NOT NULL",
    Visibility.ALL: "TRUE",
}
_NEWEST_FIRST: Final = (
    OrderTerm(field=Field(entity=Entity.ATTRIBUTE, key="start_time"), descending=True),
)
_WITH_DATA: Final = ("params", "tags", "summary", "metrics")
_READ_FIRST: Final = 16
_READ_GROWTH: Final = 8
"""How many are read first, to learn how large they are, and how many times more at the next
read at most: 16, 128, 1,000."""
_BY_NAME: Final = (OrderTerm(field=Field(entity=Entity.ATTRIBUTE, key="name")),)

RUN_ATTRIBUTES: Final = RUNS.names
"""The attributes of runs: as they may be written, to their canonical names."""
EXPERIMENT_ATTRIBUTES: Final = EXPERIMENTS.names
"""The attributes of experiments, likewise."""

_Found = TypeVar("_Found", Run, Experiment)


class SearchStore:
    """The searches of one database.

    Every method raises FILTER_INVALID when what a filter compares does not fit,
    PAGE_TOKEN_INVALID, and STORE_UNAVAILABLE.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def runs(self, search: RunSearch) -> tuple[list[Run], Cursor | None]:
        """Return a page of runs, and where the next one begins.

        Raises:
            HeadraceError: EXPERIMENT_NOT_FOUND.
        """
        async with (
            self._database.query() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(_SQL["prepare"])
            experiment_ids = await resolve_experiments(
                connection,
                search.workspace_id,
                ids=search.experiment_ids,
                names=search.experiments,
                include_deleted=search.visibility is not Visibility.ACTIVE,
            )
            places, after = await _page(
                connection,
                RUNS,
                experiment_ids=experiment_ids,
                restriction=f"r.purged_at IS NULL AND {_ACTIVITY[search.visibility]}",
                expression=search.expression,
                order=search.order or _NEWEST_FIRST,
                cursor=search.after,
                limit=search.limit,
            )
            kinds = _WITH_DATA if search.include_data else ()
            return await _read_within(
                search.bytes_max,
                places,
                after,
                lambda ids: read_runs(connection, ids, search.workspace_id, kinds=kinds),
            )

    async def experiments(self, search: ExperimentSearch) -> tuple[list[Experiment], Cursor | None]:
        """Return a page of experiments, and where the next one begins."""
        async with (
            self._database.query() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(_SQL["prepare"])
            places, after = await _page(
                connection,
                EXPERIMENTS,
                experiment_ids=None,
                restriction=f"r.workspace_id = {int(search.workspace_id)} "
                f"AND {_ACTIVITY[search.visibility]}",
                expression=search.expression,
                order=search.order or _BY_NAME,
                cursor=search.after,
                limit=search.limit,
            )
            return await _read_within(
                search.bytes_max,
                places,
                after,
                lambda ids: read_experiments(connection, search.workspace_id, ids),
            )


async def _read_within(
    bytes_max: int,
    places: Sequence[Cursor],
    after: Cursor | None,
    read: Callable[[Sequence[Any]], Awaitable[list[_Found]]],
) -> tuple[list[_Found], Cursor | None]:
    """Read what was found until it exceeds the bytes, at least one; some at a time, so that
    little more is read than is kept. Return it, and where the next page begins."""
    ids = [place.values[-1] for place in places]
    kept: list[_Found] = []
    size, count = 0, _READ_FIRST
    while len(kept) < len(ids):
        begin = len(kept)
        wanted = ids[begin : begin + count]
        for one in await read(wanted):
            size += one.answer_bytes()
            if kept and size > bytes_max:
                return kept, places[len(kept) - 1]
            kept.append(one)
        if len(kept) < begin + len(wanted):
            raise RuntimeError("what a search found is not there in its snapshot")
        fitting = max(0, bytes_max - size) * len(kept) // size
        count = min(fitting + 1, _READ_GROWTH * count)
    return kept, after


async def _page(
    connection: asyncpg.Connection,
    target: Target,
    *,
    experiment_ids: Sequence[int] | None,
    restriction: str,
    expression: Expression | None,
    order: Sequence[OrderTerm],
    cursor: Cursor | None,
    limit: int,
) -> tuple[list[Cursor], Cursor | None]:
    """Return the cursors behind each row of a page, which end with the row's id, and where
    the next page begins, if there is more."""
    remaining = list(phases(order))
    if cursor is not None:
        if cursor.phase not in remaining:
            raise _bad_token()
        del remaining[: remaining.index(cursor.phase)]
    places: list[Cursor] = []
    after: tuple[Any, ...] | None = cursor.values if cursor is not None and cursor.values else None
    for phase in remaining:
        # One more than asked for tells whether there is a next page.
        wanted = limit - len(places) + 1
        rows = await _fetch(
            connection,
            Compiler(target=target, experiment_ids=experiment_ids),
            restriction=restriction,
            expression=expression,
            order=order,
            phase=phase,
            after=after,
            limit=wanted,
        )
        places += [
            Cursor(phase=phase, values=(*tuple(row)[1:], row["id"])) for row in rows[: wanted - 1]
        ]
        if len(rows) == wanted:
            # With one row, the page was full when this phase began.
            return places, places[-1] if len(rows) > 1 else Cursor(phase=phase)
        after = None
    return places, None


async def _fetch(
    connection: asyncpg.Connection,
    compiler: Compiler,
    *,
    restriction: str,
    expression: Expression | None,
    order: Sequence[OrderTerm],
    phase: Phase,
    after: Sequence[Any] | None,
    limit: int,
) -> list[Any]:
    keys = len(order) - (phase is Phase.MISSING)
    if after is not None and len(after) != keys + 1:
        raise _bad_token()
    sql = compile_page(
        compiler,
        restriction=restriction,
        expression=expression,
        order=order,
        phase=phase,
        after=after,
        limit=limit,
    )
    try:
        rows: list[Any] = await connection.fetch(sql, *compiler.arguments)
    except asyncpg.DataError as error:
        if after is None:
            raise
        raise _bad_token() from error
    return rows


def _bad_token() -> HeadraceError:
    return HeadraceError(
        Reason.PAGE_TOKEN_INVALID,
        "page_token was not issued for this filter and order",
        field="page_token",
    )
