-- Leases. What moves with every heartbeat is in run_heartbeats; its partial index
-- holds the live runs only, and a sweep looks at nothing else.

-- name: begin_sweep
-- Nothing when another gateway sweeps now.
SELECT
    extract(epoch FROM now() - swept_at)::float8 AS gap_s,
    leases_from
FROM sweeps
FOR UPDATE SKIP LOCKED;

-- name: record_sweep
-- $1 whether leases begin anew: nobody could hear since the last sweep
UPDATE sweeps
SET swept_at = now(), leases_from = CASE WHEN $1 THEN now() ELSE leases_from END
RETURNING leases_from;

-- name: lose_runs
-- $1 leases begin at this time at the earliest, $2 the lease in seconds
UPDATE runs r SET state = 5, ended_at = h.heartbeat_at, compacted_at = NULL
FROM run_heartbeats h
WHERE h.live AND h.run_id = r.run_id AND r.state = 1
    AND greatest(h.heartbeat_at, $1) < now() - make_interval(secs => $2)
RETURNING r.run_id;

-- name: expired
-- Live runs whose lease is over, lost or ended; $3 at most
SELECT run_id FROM run_heartbeats
WHERE live AND greatest(heartbeat_at, $1) < now() - make_interval(secs => $2)
ORDER BY run_id
LIMIT $3;

-- name: expire
-- Points may have come since a run was compacted.
WITH expired AS (
    UPDATE run_heartbeats SET live = false
    WHERE run_id = ANY ($1::uuid[]) AND heartbeat_at < now() - make_interval(secs => $2)
    RETURNING run_id
)
UPDATE runs r SET compacted_at = NULL
FROM expired e
WHERE r.run_id = e.run_id AND r.compacted_at IS NOT NULL;
