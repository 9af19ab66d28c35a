-- name: refresh
-- $1 runs, none of which has hidden points. Of each key the lowest rank, over its
-- writers. Of such runs counts only grow, and the lowest rank only falls: whoever has read an
-- older state, and comes to a row later, leaves it as it is.
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
WHERE excluded.rank < m.rank
    OR (excluded.rank = m.rank AND excluded.point_count > m.point_count);

-- name: with_cutoffs
-- Of the runs $1 those where a later attempt hides points.
SELECT DISTINCT run_id
FROM attempts
WHERE run_id = ANY ($1::uuid[]) AND attempt > 1 AND resume_step IS NOT NULL;

-- name: lock_cut
-- Where points are hidden counts may fall, and nothing in a row tells which of two states is the
-- newer: one refresh of a run at a time, and it reads after it has the lock.
SELECT pg_advisory_xact_lock(hashtextextended('headrace: search rows of ' || ($1::uuid)::text, 0));

-- name: visible_parts
-- What searches have to know of a run: of each key the lowest rank that has a visible point, and
-- what each attempt has stored in it. $1 run, $2 attempts of which later ones hide points, $3
-- from which step on, $4 keys exempt from that. cut_from: the step from which on points are
-- hidden, NULL where none are. Each summary is read once. Windows find the rank: the planner
-- knows nothing of these sizes, and a join might compare all with all. OFFSET 0: see refresh.
SELECT
    series_id, key, rank, attempt, point_count, last_step, last_time_us, last_value, min_value,
    max_value, cut_from
FROM (
    SELECT *, min(rank) FILTER (WHERE is_visible) OVER (PARTITION BY key) AS lowest_rank
    FROM (
        SELECT
            *,
            -- Chunks are looked for where nothing else tells: below the lowest rank that shows.
            CASE
                WHEN cut_from IS NULL THEN true
                WHEN rank >= shown_rank THEN false
                ELSE EXISTS (
                    SELECT FROM metric_chunks c
                    WHERE c.run_id = $1 AND c.series_id = part.series_id
                        AND c.attempt = part.attempt AND c.first_step < part.cut_from
                )
            END AS is_visible
        FROM (
            SELECT *,
                min(rank) FILTER (WHERE cut_from IS NULL) OVER (PARTITION BY key) AS shown_rank
            FROM (
                SELECT
                    p.series_id, c.key, c.rank, w.attempt,
                    sum(p.point_count)::bigint AS point_count,
                    max(p.last_step) AS last_step,
                    (array_agg(p.last_time ORDER BY p.last_step DESC, p.last_time DESC,
                        p.last_value <> 'NaN' DESC, p.last_value DESC))[1] AS last_time_us,
                    (array_agg(p.last_value ORDER BY p.last_step DESC, p.last_time DESC,
                        p.last_value <> 'NaN' DESC, p.last_value DESC))[1] AS last_value,
                    min(p.min_value) AS min_value,
                    coalesce(max(p.max_value) FILTER (WHERE p.max_value <> 'NaN'), 'NaN')
                        AS max_value,
                    CASE WHEN max(p.last_step) >= h.from_step AND c.key <> ALL ($4::text[])
                        THEN h.from_step END AS cut_from
                FROM writers w
                LEFT JOIN unnest($2::integer[], $3::bigint[]) AS h (attempt, from_step)
                    ON h.attempt = w.attempt
                JOIN writer_summaries b ON b.run_id = w.run_id AND b.writer_no = w.writer_no
                CROSS JOIN LATERAL unnest(
                    b.series_ids, b.point_counts, b.last_steps, b.last_times, b.last_values,
                    b.min_values, b.max_values
                ) AS p (series_id, point_count, last_step, last_time, last_value, min_value,
                    max_value)
                CROSS JOIN LATERAL (
                    SELECT s.key, s.rank
                    FROM series s
                    WHERE s.run_id = w.run_id AND s.series_id = p.series_id
                    OFFSET 0
                ) AS c
                WHERE w.run_id = $1
                GROUP BY p.series_id, c.key, c.rank, w.attempt, h.from_step
            ) stored
        ) part
    ) seen
) ranked
WHERE rank = lowest_rank
ORDER BY key, attempt;

-- name: put
INSERT INTO run_metrics AS m (run_id, experiment_id, key, rank, point_count, last_step, last_time,
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
    min_value = excluded.min_value, max_value = excluded.max_value
WHERE (m.rank, m.point_count, m.last_step, m.last_time, m.last_value, m.min_value, m.max_value)
    IS DISTINCT FROM (excluded.rank, excluded.point_count, excluded.last_step, excluded.last_time,
        excluded.last_value, excluded.min_value, excluded.max_value);

-- name: drop_hidden
-- $2 the keys that still have visible points
DELETE FROM run_metrics WHERE run_id = $1 AND key <> ALL ($2::text[]);

-- name: mark_dirty
-- Whenever it was heard of, it is refreshed next.
INSERT INTO run_heartbeats (run_id, heartbeat_at) VALUES ($1, now())
ON CONFLICT (run_id) DO UPDATE SET refreshed_at = '-infinity', live = true;
