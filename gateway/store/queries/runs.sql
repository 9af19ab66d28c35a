-- Runs. $1 is always the run, $2 its caller's workspace, unless said.

-- name: find_experiment
-- $1 workspace, $2 name
SELECT experiment_id FROM experiments WHERE workspace_id = $1 AND name = $2;

-- name: create_experiment
-- $1 workspace, $2 name; nothing when another call was faster
INSERT INTO experiments (workspace_id, name) VALUES ($1, $2)
ON CONFLICT (workspace_id, name) DO NOTHING
RETURNING experiment_id;

-- name: create
INSERT INTO runs (run_id, workspace_id, experiment_id, name, step_policy, late_policy)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (run_id) DO NOTHING
RETURNING run_id;

-- name: read
-- One statement, hence one snapshot.
SELECT
    r.run_id, e.name AS experiment, r.name, r.state, r.step_policy, r.late_policy,
    r.created_at, r.ended_at, r.purged_at, h.heartbeat_at,
    ARRAY(SELECT attempt FROM attempts a WHERE a.run_id = r.run_id ORDER BY attempt) AS attempts,
    ARRAY(SELECT resume_step FROM attempts a WHERE a.run_id = r.run_id ORDER BY attempt) AS resume_steps,
    ARRAY(SELECT created_at FROM attempts a WHERE a.run_id = r.run_id ORDER BY attempt) AS started_at
FROM runs r
JOIN experiments e USING (experiment_id)
LEFT JOIN run_heartbeats h USING (run_id)
WHERE r.run_id = $1 AND r.workspace_id = $2;

-- name: lock
-- Whoever opens a new attempt takes the same lock.
SELECT purged_at FROM runs WHERE run_id = $1 AND workspace_id = $2 FOR UPDATE;

-- name: newest_attempt
-- A run that nobody has written to is in its first attempt.
SELECT coalesce(max(attempt), 1) FROM attempts WHERE run_id = $1;

-- name: finish
-- $2 state; a repeated farewell keeps the time of the first
UPDATE runs SET state = $2, ended_at = now() WHERE run_id = $1 AND state <> $2;

-- name: exists
SELECT purged_at FROM runs WHERE run_id = $1 AND workspace_id = $2;

-- name: heartbeat
-- Written at most every 10 seconds, however many gateways hear of the run.
INSERT INTO run_heartbeats AS h (run_id, heartbeat_at) VALUES ($1, now())
ON CONFLICT (run_id) DO UPDATE SET heartbeat_at = excluded.heartbeat_at
WHERE h.heartbeat_at < excluded.heartbeat_at - interval '10 seconds';
