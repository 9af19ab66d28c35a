"""Writes what is said of runs, within the transaction of whoever calls.

Called by the flush transaction (records of a stream) and by `runs` (the call
WriteMetadata). Never commits and never catches: atomicity and the translation
of errors are the caller's.
"""

from collections.abc import Sequence
from typing import Final

import asyncpg

from gateway.domain.metadata import MetadataRows, param_changed
from gateway.store.queries import load

_SQL: Final = load("metadata")


async def write_metadata(connection: asyncpg.Connection, rows: MetadataRows) -> None:
    """Write the rows; params that have another value already are appended to `rows.refusals`."""
    if rows.params:
        keys = sorted(rows.params)
        values = [rows.params[key][0] for key in keys]
        columns = ([run_id for run_id, _ in keys], [key for _, key in keys], values)
        await connection.execute(_SQL["insert_params"], *columns)
        # A statement of its own: it sees what others have committed meanwhile.
        for row in await connection.fetch(_SQL["differing_params"], *columns):
            place = row["place"] - 1
            rows.refusals.append(
                param_changed(
                    keys[place][1], row["value"], values[place], rows.params[keys[place]][1]
                )
            )
    if rows.tags:
        kept = sorted((*key, value) for key, value in rows.tags.items() if value is not None)
        gone = sorted(key for key, value in rows.tags.items() if value is None)
        if kept:
            await connection.execute(_SQL["put_tags"], *_columns(kept))
        if gone:
            await connection.execute(_SQL["delete_tags"], *_columns(gone))
    if rows.notes:
        await connection.execute(_SQL["put_notes"], *_columns(sorted(rows.notes.items())))
    if rows.summary:
        keys = sorted(rows.summary)
        results = [rows.summary[key] for key in keys]
        await connection.execute(
            _SQL["put_summary"],
            *_columns(keys),
            [None if isinstance(result, str) else result for result in results],
            [result if isinstance(result, str) else None for result in results],
        )
    if rows.facts:
        facts = sorted((*key, value) for key, value in rows.facts.items())
        await connection.execute(_SQL["put_facts"], *_columns(facts))
    if rows.datasets:
        datasets = [
            (*key, entry.source_type, entry.source, entry.schema, entry.profile)
            for key, entry in sorted(rows.datasets.items(), key=lambda item: item[0])
        ]
        await connection.execute(_SQL["put_datasets"], *_columns(datasets))


def _columns(rows: Sequence[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]
