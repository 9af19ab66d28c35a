-- Views for reading metrics in plain SQL. Tested equal to ReadMetrics and ListSeries.
--
-- Always name the run: WHERE run_id = '…' AND key = '…' reaches the indexes of
-- series and metric_chunks through each of these views; a query without run_id
-- reads every point there is.

-- Every stored point, hidden ones and repeats included.
CREATE VIEW metric_points_raw AS
SELECT
    s.run_id,
    s.key,
    s.rank,
    s.series_id,
    c.attempt,
    -- Without offsets the steps are an arithmetic progression. A chunk of one
    -- point, and one that repeats a single step, has stride 0.
    c.first_step + coalesce(
        p.step_offset::bigint,
        (p.position - 1)
            * ((c.last_step - c.first_step) / greatest(cardinality(c.values) - 1, 1))
    ) AS step,
    -- Seconds and microseconds apart: an interval is multiplied by a double,
    -- which holds each of the two exactly, but not all of their sums.
    timestamptz '1970-01-01 00:00:00+00'
        + ((c.first_time + p.time_offset) / 1000000) * interval '1 second'
        + ((c.first_time + p.time_offset) % 1000000) * interval '1 microsecond' AS time,
    p.value
FROM series s
JOIN metric_chunks c ON c.run_id = s.run_id AND c.series_id = s.series_id
CROSS JOIN LATERAL unnest(c.step_offsets, c.time_offsets, c.values)
    WITH ORDINALITY AS p (step_offset, time_offset, value, position);

-- From which step on the points of an attempt are hidden by later attempts.
-- Attempts that nothing hides have no row.
CREATE VIEW attempt_cutoffs AS
SELECT a.run_id, a.attempt, min(later.resume_step) AS hidden_from_step
FROM attempts a
JOIN attempts later
    ON later.run_id = a.run_id AND later.attempt > a.attempt AND later.resume_step IS NOT NULL
GROUP BY a.run_id, a.attempt;

-- The points that a reader sees: visible by the attempts, and of several at one
-- step those that the run's step policy chooses, in the order (attempt, time,
-- value) with NaN below every number.
CREATE VIEW metric_points AS
SELECT run_id, key, rank, attempt, step, time, value
FROM (
    SELECT
        p.*,
        r.step_policy,
        row_number() OVER same_step AS position,
        lag(p.attempt) OVER same_step AS previous_attempt,
        lag(p.time) OVER same_step AS previous_time,
        lag(p.value) OVER same_step AS previous_value,
        lead(p.attempt) OVER same_step AS next_attempt
    FROM metric_points_raw p
    JOIN runs r ON r.run_id = p.run_id AND r.purged_at IS NULL
    LEFT JOIN attempt_cutoffs c ON c.run_id = p.run_id AND c.attempt = p.attempt
    WHERE c.hidden_from_step IS NULL
        OR p.step < c.hidden_from_step
        OR EXISTS (
            SELECT FROM attempts e
            WHERE e.run_id = p.run_id AND p.key = ANY (e.resume_exempt_keys)
        )
    WINDOW same_step AS (
        PARTITION BY p.run_id, p.key, p.rank, p.step
        ORDER BY p.attempt, p.time, p.value <> 'NaN', p.value
    )
) ordered
WHERE CASE step_policy
    WHEN 1 THEN next_attempt IS NULL        -- LAST
    WHEN 2 THEN position = 1                -- FIRST
    ELSE position = 1                       -- ALL, exact duplicates once
        OR (attempt, time, value) <> (previous_attempt, previous_time, previous_value)
END;

-- What each attempt has stored in each series, hidden points included: the fold
-- of its writers' summaries. `last` is the greatest point by (step, time, value).
CREATE VIEW metric_summaries AS
SELECT
    s.run_id,
    s.key,
    s.rank,
    s.series_id,
    w.attempt,
    sum(p.point_count)::bigint AS point_count,
    max(p.last_step) AS last_step,
    (array_agg(p.last_time ORDER BY p.last_step DESC, p.last_time DESC,
        p.last_value <> 'NaN' DESC, p.last_value DESC))[1] AS last_time_us,
    (array_agg(p.last_value ORDER BY p.last_step DESC, p.last_time DESC,
        p.last_value <> 'NaN' DESC, p.last_value DESC))[1] AS last_value,
    min(p.min_value) AS min_value,          -- PostgreSQL's NaN is the greatest number
    coalesce(max(p.max_value) FILTER (WHERE p.max_value <> 'NaN'), 'NaN') AS max_value
FROM writer_summaries b
JOIN writers w ON w.run_id = b.run_id AND w.writer_no = b.writer_no
CROSS JOIN LATERAL unnest(
    b.series_ids, b.point_counts, b.last_steps, b.last_times, b.last_values, b.min_values,
    b.max_values
) AS p (series_id, point_count, last_step, last_time, last_value, min_value, max_value)
JOIN series s ON s.run_id = b.run_id AND s.series_id = p.series_id
GROUP BY s.run_id, s.key, s.rank, s.series_id, w.attempt;
