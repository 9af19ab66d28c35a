-- Runs. $1 is always the run, $2 its caller's workspace, unless said.

-- name: create
-- With its first heartbeat; as `core` tells it. $1 run, $2 workspace, $3 name of an experiment.
-- Nothing where there is such a run, or no such experiment.
WITH made AS (
    INSERT INTO runs (run_id, workspace_id, experiment_id, name, step_policy, late_policy,
        parent_run_id, started_at, user_name, host, git_commit, entry_point)
    SELECT $1, $2, experiment_id, $4, $5, $6, $7, coalesce($8, now()), $9, $10, $11, $12
    FROM experiments
    WHERE workspace_id = $2 AND name = $3 AND deleted_at IS NULL
    ON CONFLICT (run_id) DO NOTHING
    RETURNING *
), heard_of AS (
    INSERT INTO run_heartbeats (run_id, heartbeat_at) SELECT run_id, now() FROM made
    RETURNING heartbeat_at
)
SELECT
    made.run_id, experiment_id, $3::text AS experiment, name, state, step_policy, late_policy,
    created_at, started_at, ended_at, deleted_at, purged_at, heartbeat_at, parent_run_id, user_name,
    host, git_commit, entry_point, NULL::text AS notes, '{}'::integer[] AS attempts,
    '{}'::bigint[] AS resume_steps, '{}'::timestamptz[] AS attempt_starts
FROM made, heard_of;

-- name: line_above
-- $1 a run, $2 its parent: whether the line from the parent upwards comes back to the run,
-- and whether it ends at a run that is not there (yet).
WITH RECURSIVE above (run_id) AS (
    SELECT $2::uuid
    UNION
    SELECT r.parent_run_id
    FROM above
    JOIN runs r USING (run_id)
    WHERE r.parent_run_id IS NOT NULL
)
SELECT
    bool_or(a.run_id = $1::uuid) AS returns,
    NOT bool_and(EXISTS (SELECT FROM runs r WHERE r.run_id = a.run_id)) AS is_open
FROM above a;

-- name: lock_open_lines
-- One creation at a time; it looks again, and sees what those before it committed.
SELECT pg_advisory_xact_lock(hashtextextended('headrace: open lines', 0));

-- name: core
-- $1 runs. One statement, hence one snapshot.
SELECT
    r.run_id, r.experiment_id, e.name AS experiment, r.name, r.state, r.step_policy,
    r.late_policy, r.created_at, r.started_at, r.ended_at, r.deleted_at, r.purged_at,
    h.heartbeat_at, r.parent_run_id, r.user_name, r.host, r.git_commit, r.entry_point, n.notes,
    ARRAY(SELECT attempt FROM attempts a WHERE a.run_id = r.run_id ORDER BY attempt) AS attempts,
    ARRAY(SELECT resume_step FROM attempts a WHERE a.run_id = r.run_id ORDER BY attempt)
        AS resume_steps,
    ARRAY(SELECT created_at FROM attempts a WHERE a.run_id = r.run_id ORDER BY attempt)
        AS attempt_starts
FROM runs r
JOIN experiments e USING (experiment_id)
LEFT JOIN run_heartbeats h USING (run_id)
LEFT JOIN run_notes n USING (run_id)
WHERE r.run_id = ANY ($1::uuid[]) AND r.workspace_id = $2;

-- name: params
SELECT run_id, key, value FROM run_params WHERE run_id = ANY ($1::uuid[]) ORDER BY key;

-- name: tags
SELECT run_id, key, value FROM run_tags WHERE run_id = ANY ($1::uuid[]) ORDER BY key;

-- name: summary
SELECT run_id, key, number, text FROM run_summary WHERE run_id = ANY ($1::uuid[]) ORDER BY key;

-- name: metrics
-- Of each run at most $2, the first by key.
SELECT m.*
FROM unnest($1::uuid[]) AS wanted (run_id)
CROSS JOIN LATERAL (
    SELECT r.run_id, r.key, r.rank, r.point_count, r.last_step, r.last_time, r.last_value,
        r.min_value, r.max_value
    FROM run_metrics r
    WHERE r.run_id = wanted.run_id
    ORDER BY r.key
    LIMIT $2
) AS m
ORDER BY m.run_id, m.key;

-- name: facts
SELECT run_id, name, value FROM run_facts WHERE run_id = ANY ($1::uuid[]) ORDER BY name;

-- name: datasets
SELECT run_id, name, digest, context, source_type, source, schema, profile
FROM run_datasets
WHERE run_id = ANY ($1::uuid[])
ORDER BY position;

-- name: exempt_keys
SELECT run_id, attempt, resume_exempt_keys
FROM attempts
WHERE run_id = ANY ($1::uuid[]) AND resume_exempt_keys <> '{}';

-- name: lock
-- Whoever opens a stream waits for it, and sees what was made of the run.
SELECT purged_at, deleted_at FROM runs WHERE run_id = $1 AND workspace_id = $2 FOR UPDATE;

-- name: exists
-- Keeps a purge away until the caller's transaction ends, and nothing else.
SELECT purged_at FROM runs WHERE run_id = $1 AND workspace_id = $2 FOR KEY SHARE;

-- name: newest_attempt
-- A run that nobody has written to is in its first attempt.
SELECT coalesce(max(attempt), 1) FROM attempts WHERE run_id = $1;

-- name: finish
-- $2 state, $3 when; a repeated farewell keeps the time of the first
UPDATE runs SET state = $2, ended_at = coalesce($3, now()), compacted_at = NULL
WHERE run_id = $1 AND (state <> $2 OR ended_at <> $3);

-- name: reopen
UPDATE runs SET state = 1, ended_at = NULL, compacted_at = NULL WHERE run_id = $1 AND state <> 1;

-- name: update
-- $2.. name, user_name, host, git_commit, entry_point; NULL leaves one as it is
UPDATE runs SET
    name = coalesce($2, name),
    user_name = coalesce($3, user_name),
    host = coalesce($4, host),
    git_commit = coalesce($5, git_commit),
    entry_point = coalesce($6, entry_point)
WHERE run_id = $1;

-- name: is_protected
-- $2 the tag that protects
SELECT EXISTS (SELECT FROM run_tags WHERE run_id = $1 AND key = $2);

-- name: delete
UPDATE runs SET deleted_at = now() WHERE run_id = $1 AND deleted_at IS NULL;

-- name: restore
UPDATE runs SET deleted_at = NULL WHERE run_id = $1 AND deleted_at IS NOT NULL;

-- name: heartbeat
-- Written at most every 10 seconds, however many gateways hear of the run.
INSERT INTO run_heartbeats AS h (run_id, heartbeat_at) VALUES ($1, now())
ON CONFLICT (run_id) DO UPDATE SET heartbeat_at = excluded.heartbeat_at, live = true
WHERE h.heartbeat_at < excluded.heartbeat_at - interval '10 seconds' OR NOT h.live;

-- name: revive
UPDATE runs SET state = 1, ended_at = NULL WHERE run_id = $1 AND state = 5;
