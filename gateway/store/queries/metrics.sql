-- Writers, series, flushes. Arrays of a flush are sorted by their keys, so that
-- concurrent flushes lock rows in one order.

-- name: open_writer
-- $1 run, $2 workspace, $3 writer, $4 incarnation, $5 rank, $6 attempt, $7 its resume step,
-- $8 its exempt keys. One statement, so that opening a stream is one commit and no more.
-- Nothing for a run that the workspace has not. epoch is NULL where the writer is refused;
-- begun says whether this stream is the first of its attempt, and the newest attempt makes
-- an ended run go on.
WITH run AS MATERIALIZED (
    -- The lock keeps a purge away until the writer is there to be deleted, and waits for whoever
    -- ends the run just now: the row is as they left it, which the statement's snapshot is not.
    SELECT run_id, state, late_policy, purged_at IS NOT NULL AS purged
    FROM runs
    WHERE run_id = $1 AND workspace_id = $2
    FOR KEY SHARE
), opened AS (
    INSERT INTO writers AS w (run_id, writer_id, incarnation, rank, attempt)
    SELECT run_id, $3, $4, $5, $6 FROM run WHERE NOT purged
    ON CONFLICT (run_id, writer_id) DO UPDATE SET epoch = w.epoch + 1
    WHERE w.incarnation = excluded.incarnation AND w.rank = excluded.rank AND w.attempt = excluded.attempt
    RETURNING run_id, writer_no, epoch, committed_sequence, accepted_points, late_points,
        repeated_points, rejected_points, rejected_entries, lost_records, rejections,
        finished_at IS NOT NULL AS finished
), begun AS (
    INSERT INTO attempts (run_id, attempt, resume_step, resume_exempt_keys)
    SELECT run_id, $6, $7, $8 FROM opened
    ON CONFLICT (run_id, attempt) DO NOTHING
    RETURNING attempt
), restarted AS (
    UPDATE runs r SET state = 1, ended_at = NULL
    FROM run
    WHERE r.run_id = run.run_id AND run.state <> 1 AND EXISTS (SELECT FROM begun)
        AND NOT EXISTS (SELECT FROM attempts a WHERE a.run_id = $1 AND a.attempt > $6)
    RETURNING r.run_id
), heard_of AS (
    -- After the run's row, as everywhere: should the gateway die now, the run has a lease that ends.
    INSERT INTO run_heartbeats (run_id, heartbeat_at)
    SELECT run_id, now() FROM restarted
    ON CONFLICT (run_id) DO UPDATE SET heartbeat_at = excluded.heartbeat_at, live = true
)
SELECT run.late_policy, run.purged, EXISTS (SELECT FROM begun) AS begun, opened.*
FROM run LEFT JOIN opened ON true;

-- name: get_attempt
SELECT resume_step FROM attempts WHERE run_id = $1 AND attempt = $2;

-- name: announce_resume_step
UPDATE attempts SET resume_step = $3, resume_exempt_keys = $4
WHERE run_id = $1 AND attempt = $2 AND resume_step IS NULL
RETURNING true;

-- name: get_writer
SELECT incarnation, rank, attempt FROM writers WHERE run_id = $1 AND writer_id = $2;

-- name: writer_summaries
SELECT series_ids, point_counts, last_steps, last_times, last_values, min_values, max_values
FROM writer_summaries
WHERE run_id = $1 AND writer_no = $2
ORDER BY block;

-- name: finish_writer
UPDATE writers SET finished_at = COALESCE(finished_at, now())
WHERE run_id = $1 AND writer_id = $2 AND epoch = $3 AND committed_sequence = $4
RETURNING true;

-- name: resync_writer
UPDATE writers
SET committed_sequence = $4::bigint - 1,
    lost_records = lost_records + ($4::bigint - 1 - committed_sequence)
WHERE run_id = $1 AND writer_id = $2 AND epoch = $3 AND committed_sequence < $4::bigint - 1
RETURNING true;

-- name: touch_runs
-- A stream may outlive its run's purge; nothing of the run comes back.
INSERT INTO run_heartbeats (run_id, heartbeat_at)
SELECT u.run_id, now()
FROM unnest($1::uuid[]) AS u(run_id)
JOIN runs r ON r.run_id = u.run_id AND r.purged_at IS NULL
ORDER BY u.run_id
ON CONFLICT (run_id) DO UPDATE SET heartbeat_at = excluded.heartbeat_at, live = true;

-- name: revive_runs
-- Those that were thought lost are heard of again.
UPDATE runs SET state = 1, ended_at = NULL WHERE run_id = ANY ($1::uuid[]) AND state = 5;

-- name: find_series
SELECT u.place, s.series_id
FROM unnest($1::uuid[], $2::integer[], $3::text[]) WITH ORDINALITY AS u(run_id, rank, key, place)
JOIN series s ON s.run_id = u.run_id AND s.key = u.key AND s.rank = u.rank;

-- name: count_series
SELECT count(*) FROM (SELECT FROM series WHERE run_id = $1 LIMIT $2) AS limited;

-- name: insert_series
-- None for a run that is purged: its streams are about to end.
INSERT INTO series (run_id, rank, key)
SELECT u.run_id, u.rank, u.key
FROM unnest($1::uuid[], $2::integer[], $3::text[]) AS u(run_id, rank, key)
JOIN runs r ON r.run_id = u.run_id AND r.purged_at IS NULL
ORDER BY u.run_id, u.key COLLATE "C", u.rank
ON CONFLICT (run_id, key, rank) DO NOTHING;

-- name: advance_writers
UPDATE writers w
SET committed_sequence = u.last_sequence,
    accepted_points = w.accepted_points + u.accepted_points,
    late_points = w.late_points + u.late_points,
    repeated_points = w.repeated_points + u.repeated_points,
    rejected_points = w.rejected_points + u.rejected_points,
    rejections = COALESCE(u.rejections::jsonb, w.rejections)
FROM unnest($1::integer[], $2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[],
        $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[])
    AS u(place, run_id, writer_id, epoch, first_sequence, last_sequence,
        accepted_points, late_points, repeated_points, rejected_points, rejections)
WHERE w.run_id = u.run_id AND w.writer_id = u.writer_id
  AND w.epoch = u.epoch AND w.committed_sequence = u.first_sequence - 1 AND w.finished_at IS NULL
RETURNING u.place;

-- name: newer_epochs
-- $1 places of writers, $2 their runs, $3 their ids, $4 the epochs of their streams.
SELECT u.place
FROM unnest($1::integer[], $2::uuid[], $3::uuid[], $4::bigint[]) AS u(place, run_id, writer_id, epoch)
JOIN writers w ON w.run_id = u.run_id AND w.writer_id = u.writer_id
WHERE w.epoch > u.epoch;

-- name: store_summaries
INSERT INTO writer_summaries AS s (run_id, writer_no, block, series_ids, point_counts, last_steps,
    last_times, last_values, min_values, max_values)
SELECT u.run_id, u.writer_no, u.block,
    ($6::bigint[])[u.lo:u.hi], ($7::bigint[])[u.lo:u.hi], ($8::bigint[])[u.lo:u.hi],
    ($9::bigint[])[u.lo:u.hi], ($10::float8[])[u.lo:u.hi], ($11::float8[])[u.lo:u.hi],
    ($12::float8[])[u.lo:u.hi]
FROM unnest($1::uuid[], $2::bigint[], $3::integer[], $4::integer[], $5::integer[])
    AS u(run_id, writer_no, block, lo, hi)
ON CONFLICT (run_id, writer_no, block) DO UPDATE SET
    series_ids = excluded.series_ids, point_counts = excluded.point_counts,
    last_steps = excluded.last_steps, last_times = excluded.last_times,
    last_values = excluded.last_values, min_values = excluded.min_values,
    max_values = excluded.max_values;

-- name: insert_marks
INSERT INTO late_marks (run_id, series_id, attempt, last_step)
SELECT u.run_id, u.series_id, u.attempt, -9223372036854775808
FROM unnest($1::uuid[], $2::bigint[], $3::integer[]) AS u(run_id, series_id, attempt)
ORDER BY u.run_id, u.series_id, u.attempt
ON CONFLICT (run_id, series_id, attempt) DO NOTHING;

-- name: lock_marks
SELECT m.run_id, m.series_id, m.attempt, m.last_step
FROM late_marks m
JOIN unnest($1::uuid[], $2::bigint[], $3::integer[]) AS u(run_id, series_id, attempt)
    ON m.run_id = u.run_id AND m.series_id = u.series_id AND m.attempt = u.attempt
ORDER BY m.run_id, m.series_id, m.attempt
FOR UPDATE OF m;

-- name: raise_marks
UPDATE late_marks m SET last_step = u.last_step
FROM unnest($1::uuid[], $2::bigint[], $3::integer[], $4::bigint[]) AS u(run_id, series_id, attempt, last_step)
WHERE m.run_id = u.run_id AND m.series_id = u.series_id AND m.attempt = u.attempt
  AND m.last_step < u.last_step;

-- name: lock_writers
SELECT u.place, w.epoch, w.committed_sequence
FROM writers w
JOIN unnest($1::integer[], $2::uuid[], $3::uuid[]) AS u(place, run_id, writer_id)
    ON w.run_id = u.run_id AND w.writer_id = u.writer_id
ORDER BY w.run_id, w.writer_id
FOR UPDATE OF w;
