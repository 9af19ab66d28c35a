-- name: refresh
-- $1 runs, none of which has hidden points. Of each key the lowest rank, over its
-- writers.
-- OFFSET 0 looks every series up by its id: what the planner would guess of the size of
-- unnested blocks, it guesses wrong, and reads all series of a run for each block of 24.
INSERT INTO run_metrics AS m (run_id, experiment_id, key, rank, point_count, last_step, last_time,
    last_value, min_value, max_value)
SELECT
    w.run_id, r.experiment_id, c.key, c.rank,
    sum(p.point_count)::bigint,
    max(p.last_step),
    (array_agg(p.last_time ORDER BY p.last_step DESC, p.last_time DESC,
        p.last_value <> 'NaN' DESC, p.last_value DESC))[1],
    (array_agg(p.last_value ORDER BY p.last_step DESC, p.last_time DESC,
        p.last_value <> 'NaN' DESC, p.last_value DESC))[1],
    min(p.min_value),                   -- PostgreSQL's NaN is the greatest number
    coalesce(max(p.max_value) FILTER (WHERE p.max_value <> 'NaN'), 'NaN')
FROM writers w
JOIN runs r ON r.run_id = w.run_id
JOIN writer_summaries b ON b.run_id = w.run_id AND b.writer_no = w.writer_no
CROSS JOIN LATERAL unnest(
    b.series_ids, b.point_counts, b.last_steps, b.last_times, b.last_values, b.min_values,
    b.max_values
) AS p (series_id, point_count, last_step, last_time, last_value, min_value, max_value)
CROSS JOIN LATERAL (
    SELECT s.key, s.rank
    FROM series s
    WHERE s.run_id = w.run_id AND s.series_id = p.series_id
    OFFSET 0
) AS c
WHERE w.run_id = ANY ($1::uuid[])
  AND NOT EXISTS (
    SELECT FROM series lower
    WHERE lower.run_id = w.run_id AND lower.key = c.key AND lower.rank < c.rank
    OFFSET 0
  )
GROUP BY w.run_id, r.experiment_id, c.key, c.rank
ORDER BY w.run_id, c.key
ON CONFLICT (run_id, key) DO UPDATE SET
    rank = excluded.rank, point_count = excluded.point_count, last_step = excluded.last_step,
    last_time = excluded.last_time, last_value = excluded.last_value,
    min_value = excluded.min_value, max_value = excluded.max_value
WHERE (m.rank, m.point_count, m.last_step, m.last_time)
    IS DISTINCT FROM (excluded.rank, excluded.point_count, excluded.last_step, excluded.last_time);

-- name: with_cutoffs
-- Of the runs $1 those where a later attempt hides points.
SELECT DISTINCT a.run_id, r.workspace_id
FROM attempts a
JOIN runs r ON r.run_id = a.run_id
WHERE a.run_id = ANY ($1::uuid[]) AND a.attempt > 1 AND a.resume_step IS NOT NULL;

-- name: put
INSERT INTO run_metrics (run_id, experiment_id, key, rank, point_count, last_step, last_time,
    last_value, min_value, max_value)
SELECT r.run_id, r.experiment_id, u.key, u.rank, u.point_count, u.last_step, u.last_time,
    u.last_value, u.min_value, u.max_value
FROM unnest($2::text[], $3::integer[], $4::bigint[], $5::bigint[], $6::bigint[], $7::float8[],
        $8::float8[], $9::float8[])
    AS u (key, rank, point_count, last_step, last_time, last_value, min_value, max_value)
JOIN runs r ON r.run_id = $1
ORDER BY u.key
ON CONFLICT (run_id, key) DO UPDATE SET
    rank = excluded.rank, point_count = excluded.point_count, last_step = excluded.last_step,
    last_time = excluded.last_time, last_value = excluded.last_value,
    min_value = excluded.min_value, max_value = excluded.max_value;

-- name: drop_hidden
-- $2 the keys that still have visible points
DELETE FROM run_metrics WHERE run_id = $1 AND key <> ALL ($2::text[]);

-- name: claim_dirty
-- Live runs heard of since they were refreshed $2 seconds ago or earlier; at most $1, and
-- none that another gateway refreshes just now. Marked before the summaries are read: what is
-- committed meanwhile makes a run dirty again.
WITH dirty AS MATERIALIZED (
    SELECT run_id FROM run_heartbeats
    WHERE live AND heartbeat_at > refreshed_at AND refreshed_at < now() - make_interval(secs => $2)
    ORDER BY refreshed_at
    LIMIT $1
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE run_heartbeats h SET refreshed_at = now() FROM dirty WHERE h.run_id = dirty.run_id
RETURNING h.run_id;
