-- Compaction. $1 is the run unless said.
--
-- Comments write a parameter as (2), not with a dollar: asyncpg puts the arguments
-- of a COPY into its text, comments included.

-- name: runs_to_settle
-- $1 the idle time in seconds, $2 at most so many: live runs, and such as have ended
-- and are not compacted. Those looked at the longest ago first.
SELECT run_id
FROM (
    SELECT r.run_id, r.settled_at
    FROM run_heartbeats h
    JOIN runs r USING (run_id)
    WHERE h.live AND r.ended_at IS NULL AND r.deleted_at IS NULL AND r.purged_at IS NULL
        AND r.settled_at < now() - make_interval(secs => $1)
    UNION ALL
    SELECT run_id, settled_at
    FROM runs
    WHERE ended_at < now() - make_interval(secs => $1) AND compacted_at IS NULL
        AND purged_at IS NULL AND deleted_at IS NULL
        AND settled_at < now() - make_interval(secs => $1)
) due
ORDER BY settled_at
LIMIT $2;

-- name: lock_to_settle
-- $2 the idle time in seconds. Nothing when another compactor has it, or had it since.
SELECT ended_at < now() - make_interval(secs => $2) AS ended
FROM runs
WHERE run_id = $1 AND purged_at IS NULL AND purge_started_at IS NULL
    AND settled_at < now() - make_interval(secs => $2)
FOR NO KEY UPDATE SKIP LOCKED;

-- name: no_place_held
-- False while a follower reads a snapshot, of which it will go on: hold_place in reading.sql.
SELECT pg_try_advisory_xact_lock(hashtextextended('headrace: followers of ' || ($1::uuid)::text, 0));

-- name: settle_run
UPDATE runs SET settled_at = now() WHERE run_id = $1;

-- name: settle_writers
-- What was committed at the last look may be merged from now on: of how many writers is
-- that more than before? The rows are locked in the order in which flushes lock them.
WITH moved AS (
    SELECT writer_id, compacted_sequence < settled_sequence AS more
    FROM writers
    WHERE run_id = $1
        AND (settled_sequence < committed_sequence OR compacted_sequence < settled_sequence)
    ORDER BY writer_id
    FOR NO KEY UPDATE
), settled AS (
    UPDATE writers w
    SET compacted_sequence = w.settled_sequence, settled_sequence = w.committed_sequence
    FROM moved
    WHERE w.run_id = $1 AND w.writer_id = moved.writer_id
    RETURNING moved.more
)
SELECT count(*) FILTER (WHERE more) FROM settled;

-- name: all_settled
SELECT coalesce(bool_and(compacted_sequence >= committed_sequence), true)
FROM writers
WHERE run_id = $1;

-- name: series_after
-- A page of the run's series: $2 the last id of the page before, $3 how many.
SELECT series_id FROM series WHERE run_id = $1 AND series_id > $2 ORDER BY series_id LIMIT $3;

-- name: loose_groups
-- $2 series, $3 of each that many of the chunks that are not merged, those with the
-- greatest steps, NULL for all, $4 points of the longest loose chunk
SELECT
    s.series_id,
    c.writer_no,
    count(*) AS chunk_count,
    sum(c.points)::bigint AS point_count,
    min(c.first_step) AS first_step,
    max(c.seen) AS seen_chunks
FROM unnest($2::bigint[]) AS s (series_id)
CROSS JOIN LATERAL (
    SELECT *, count(*) OVER () AS seen
    FROM (
        SELECT writer_no, last_sequence, first_step, length(point_values) / 8 AS points
        FROM loose_chunks
        WHERE run_id = $1 AND series_id = s.series_id
        ORDER BY first_step DESC
        LIMIT $3
    ) newest
) c
JOIN writers w ON w.run_id = $1 AND w.writer_no = c.writer_no
WHERE c.points <= $4 AND c.last_sequence <= w.compacted_sequence
GROUP BY s.series_id, c.writer_no
ORDER BY s.series_id, c.writer_no;

-- name: lock_to_merge
-- Nothing when somebody else works on the run: another compactor, a purge, an upload.
SELECT true AS locked
FROM runs
WHERE run_id = $1 AND purged_at IS NULL AND purge_started_at IS NULL
FOR NO KEY UPDATE SKIP LOCKED;

-- name: take_loose
-- Takes loose chunks out of the table: (2) their series, (3) their writers, (4) the first
-- step to begin at, (5) points of the longest, (6) at most so many of each group.
-- No statement changes a chunk, and whoever deletes one has locked the run: the places
-- (ctid) that the inner query finds are still those of the same rows.
-- + 0: by their places alone. By the index every chunk of the series would be looked at.
DELETE FROM loose_chunks c
USING unnest($2::bigint[], $3::bigint[]) WITH ORDINALITY AS g (series_id, writer_no, place)
WHERE c.series_id + 0 = g.series_id AND c.writer_no = g.writer_no
    AND c.ctid = ANY (ARRAY(
        SELECT loose.place
        FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS u (series_id, writer_no, first_step)
        JOIN writers w ON w.run_id = $1 AND w.writer_no = u.writer_no
        CROSS JOIN LATERAL (
            SELECT m.ctid AS place
            FROM loose_chunks m
            WHERE m.run_id = $1 AND m.series_id = u.series_id AND m.first_step >= u.first_step
                AND m.writer_no = u.writer_no AND length(m.point_values) / 8 <= $5
                AND m.last_sequence <= w.compacted_sequence
            ORDER BY m.first_step
            LIMIT $6
        ) loose
    ))
RETURNING
    length(c.point_values) / 4 + (c.step_offsets IS NOT NULL)::integer, (g.place - 1)::integer,
    0, c.attempt, c.first_step, c.last_step, c.first_time, c.point_values, c.time_offsets,
    c.step_offsets;

-- name: mark_compacted
-- Only if nothing was committed since the writers were settled.
UPDATE runs SET compacted_at = now()
WHERE run_id = $1 AND ended_at IS NOT NULL AND NOT EXISTS (
    SELECT FROM writers WHERE run_id = $1 AND committed_sequence > compacted_sequence
);
