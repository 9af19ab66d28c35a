"""Many runs with params, tags and metrics, made by PostgreSQL itself, to search in.

Every value follows from the run's number, so that a measurement can be repeated.
"""

from typing import Final

import asyncpg

EXPERIMENT: Final = "team/search/many"

_RUNS: Final = """
INSERT INTO runs (run_id, workspace_id, experiment_id, name, state, started_at, ended_at)
SELECT md5(n::text)::uuid, 0, 1000, 'run-' || n, 1 + n % 4,
    now() - make_interval(secs => $1 - n), now() - make_interval(secs => $1 - n - 600)
FROM generate_series(1, $1) n
"""

# p0 has 3 values, p1 10, p2 100, ... ; the last ones differ in nearly every run.
_PARAMS: Final = """
INSERT INTO run_params (run_id, experiment_id, key, value)
SELECT md5(n::text)::uuid, 1000, 'p' || k,
    CASE WHEN k = 0 THEN (ARRAY['xgboost', 'resnet', 'bert'])[1 + n % 3]
         ELSE (hashint8(n * 31 + k) & 2147483647) % (10 ^ (1 + k % 5))::integer || '' END
FROM generate_series(1, $1) n, generate_series(0, 19) k
"""

_TAGS: Final = """
INSERT INTO run_tags (run_id, experiment_id, key, value)
SELECT md5(n::text)::uuid, 1000, 't' || k,
    CASE WHEN k = 0 THEN (ARRAY['rec', 'vision', 'speech', 'recsys'])[1 + n % 4]
         ELSE (hashint8(n * 37 + k) & 1023) || '' END
FROM generate_series(1, $1) n, generate_series(0, 4) k
"""

_METRICS: Final = """
INSERT INTO run_metrics (run_id, experiment_id, key, rank, point_count, last_step, last_time,
    last_value, min_value, max_value)
SELECT md5(n::text)::uuid, 1000, 'm' || k, 0, 1000, 1000, 0, v, v - 0.5, v + 0.5
FROM generate_series(1, $1) n, generate_series(0, 19) k,
    LATERAL (SELECT (hashint8(n * 41 + k) & 1048575) / 1048576.0 AS v) AS value
"""


async def make_runs(dsn: str, runs: int) -> None:
    """Insert `runs` runs of 20 params, 5 tags and 20 metrics each into experiment 1000."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "INSERT INTO experiments (experiment_id, workspace_id, name) VALUES (1000, 0, $1)",
            EXPERIMENT,
        )
        for statement in (_RUNS, _PARAMS, _TAGS, _METRICS):
            await connection.execute(statement, runs, timeout=600)
        await connection.execute(
            "VACUUM ANALYZE runs, run_params, run_tags, run_metrics", timeout=600
        )
    finally:
        await connection.close()
