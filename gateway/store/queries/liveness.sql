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
-- $1 leases begin at this time at the earliest, $2 the lease in seconds. A run that somebody
-- ends, opens or changes just now is looked at by the next sweep.
WITH silent AS MATERIALIZED (
    SELECT r.run_id, h.heartbeat_at
    FROM run_heartbeats h
    JOIN runs r USING (run_id)
    WHERE h.live AND r.state = 1
        AND greatest(h.heartbeat_at, $1) < now() - make_interval(secs => $2)
    FOR NO KEY UPDATE OF r SKIP LOCKED
)
UPDATE runs r SET state = 5, ended_at = silent.heartbeat_at, compacted_at = NULL
FROM silent
WHERE r.run_id = silent.run_id
RETURNING r.run_id;

-- name: claim
-- Live runs whose search rows are to be refreshed, the longest ago first; at most $1, none that
-- was within the last $2 seconds, and none that another gateway claims just now. Those heard of
-- since; and, for the last time, those that have ended or are lost, and whose lease of $3 seconds
-- is over. Marked, and committed, before the summaries are read: what is committed meanwhile
-- makes a run due again.
WITH due AS MATERIALIZED (
    SELECT run_id
    FROM run_heartbeats h
    WHERE live AND refreshed_at < now() - make_interval(secs => $2)
        AND (
            heartbeat_at > refreshed_at
            OR (
                greatest(heartbeat_at, (SELECT leases_from FROM sweeps))
                    < now() - make_interval(secs => $3)
                AND EXISTS (SELECT FROM runs r WHERE r.run_id = h.run_id AND r.state <> 1)
            )
        )
    ORDER BY refreshed_at
    LIMIT $1
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE run_heartbeats h SET refreshed_at = now() FROM due WHERE h.run_id = due.run_id
RETURNING
    h.run_id,
    EXISTS (
        SELECT FROM attempts a
        WHERE a.run_id = h.run_id AND a.attempt > 1 AND a.resume_step IS NOT NULL
    ) AS is_cut;

-- name: put_off
-- A run whose refresh takes the time of others is not due again for $2 seconds, unless whoever
-- ended it has asked for it meanwhile.
UPDATE run_heartbeats SET refreshed_at = now() + make_interval(secs => $2)
WHERE run_id = $1 AND refreshed_at > '-infinity';

-- name: expire
-- Of the runs $1, just refreshed, those that have ended or are lost, and whose lease of $2 seconds
-- is over: nobody looks at them any more. Nothing is waited for; what is locked is left for
-- later. Points may have come since a run was compacted.
WITH silent AS MATERIALIZED (
    SELECT r.run_id
    FROM runs r
    JOIN run_heartbeats h USING (run_id)
    WHERE r.run_id = ANY ($1::uuid[]) AND r.state <> 1 AND h.live
        AND greatest(h.heartbeat_at, (SELECT leases_from FROM sweeps))
            < now() - make_interval(secs => $2)
    FOR NO KEY UPDATE OF r, h SKIP LOCKED
), expired AS (
    UPDATE run_heartbeats h SET live = false
    FROM silent
    WHERE h.run_id = silent.run_id
)
UPDATE runs r SET compacted_at = NULL
FROM silent
WHERE r.run_id = silent.run_id AND r.compacted_at IS NOT NULL;
