"""Many runs with params, tags and metrics, made by PostgreSQL itself, to search in.

Every value follows from the run's number, so that a measurement can be repeated.
"""

import asyncio
from typing import Final

import asyncpg

EXPERIMENT: Final = "team/search/many"

# As UUIDv7 does, ids ascend in time: neighbours in the index, as in life.
_ID: Final = "('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"

_RUNS: Final = f"""
INSERT INTO runs (run_id, workspace_id, experiment_id, name, state, started_at, ended_at)
SELECT {_ID}, 0, 1000, 'run-' || n, 1 + n % 4,
    now() - make_interval(secs => $1 - n), now() - make_interval(secs => $1 - n - 600)
FROM generate_series(1, $1) n
"""

# OFFSET 0: an id is made once, and not for every row that has it.
_RUN_IDS: Final = f"(SELECT n, {_ID} AS run_id FROM generate_series(1, $1) n OFFSET 0) run"

# p0 has 3 values, p1 10, p2 100, ... ; the last ones differ in nearly every run.
_PARAMS: Final = f"""
INSERT INTO run_params (run_id, experiment_id, key, value)
SELECT run_id, 1000, 'p' || k,
    CASE WHEN k = 0 THEN (ARRAY['xgboost', 'resnet', 'bert'])[1 + n % 3]
         ELSE (hashint8(n * 31 + k) & 2147483647)
            % (ARRAY[10, 100, 1000, 10000, 100000])[1 + k % 5] || '' END
FROM {_RUN_IDS}, generate_series(0, 19) k
"""

_TAGS: Final = f"""
INSERT INTO run_tags (run_id, experiment_id, key, value)
SELECT run_id, 1000, 't' || k,
    CASE WHEN k = 0 THEN (ARRAY['rec', 'vision', 'speech', 'recsys'])[1 + n % 4]
         ELSE (hashint8(n * 37 + k) & 1023) || '' END
FROM {_RUN_IDS}, generate_series(0, 4) k
"""

_METRICS: Final = f"""
INSERT INTO run_metrics (run_id, experiment_id, key, rank, point_count, last_step, last_time,
    last_value, min_value, max_value)
SELECT run_id, 1000, 'm' || k, 0, 1000, 1000, 0, v, v - 0.5, v + 0.5
FROM {_RUN_IDS}, generate_series(0, 19) k,
    LATERAL (SELECT (hashint8(n * 41 + k) & 1048575) / 1048576::float8 AS v) AS value
"""


# What drops and makes each index of a table again, with the statistics of its expressions.
_INDEXES: Final = """
SELECT
    CASE WHEN c.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass)
         ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', i.indrelid::regclass, c.conname) END
    AS drop,
    CASE WHEN c.oid IS NULL THEN pg_get_indexdef(i.indexrelid)
         ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', i.indrelid::regclass, c.conname,
            pg_get_constraintdef(c.oid)) END
    || coalesce((
        SELECT string_agg(format('; ALTER INDEX %s ALTER COLUMN %s SET STATISTICS %s',
            i.indexrelid::regclass, a.attnum, a.attstattarget), '')
        FROM pg_attribute a WHERE a.attrelid = i.indexrelid AND a.attstattarget >= 0
    ), '') AS make
FROM pg_index i
LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid AND c.contype = 'p'
WHERE i.indrelid = $1::text::regclass
"""


async def make_runs(dsn: str, runs: int) -> None:
    """Insert `runs` runs of 20 params, 5 tags and 20 metrics each into experiment 1000.

    The tables become UNLOGGED: they are read alike, and half the time is saved.
    """
    await _execute(
        dsn,
        "INSERT INTO experiments (experiment_id, workspace_id, name)"
        f" VALUES (1000, 0, '{EXPERIMENT}')",
    )
    await asyncio.gather(
        _insert(dsn, "runs", _RUNS, runs),
        _insert(dsn, "run_params", _PARAMS, runs),
        _insert(dsn, "run_tags", _TAGS, runs),
        _insert(dsn, "run_metrics", _METRICS, runs),
    )


async def _insert(dsn: str, table: str, statement: str, runs: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET maintenance_work_mem = '256MB'")
        await connection.execute(f"ALTER TABLE {table} SET UNLOGGED")
        # Built once the rows are there: several times faster than row by row.
        later = [] if table == "runs" else await connection.fetch(_INDEXES, table)
        for row in later:
            await connection.execute(row["drop"])
        await connection.execute(statement, runs, timeout=600)
        for row in later:
            await connection.execute(row["make"], timeout=600)
        await connection.execute(f"VACUUM ANALYZE {table}", timeout=600)
    finally:
        await connection.close()


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
