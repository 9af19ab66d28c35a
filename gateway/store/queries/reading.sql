-- Reading metrics. Everything of one read runs in one REPEATABLE READ transaction.
--
-- A read works on *groups*: the series, or all chosen ranks of a key when they
-- are aggregated, each further split by attempt when the reader wants attempts
-- apart. Chunks come in the order (group, first_step). metric_chunks is a view of two
-- tables: loose chunks and merged ones.
--
-- Comments write a parameter as (2), not with a dollar: asyncpg puts the arguments
-- of a COPY into its text, comments included.

-- name: read_run
SELECT step_policy, purged_at IS NOT NULL AS purged
FROM runs
WHERE run_id = $1 AND workspace_id = $2;

-- name: read_attempts
SELECT attempt, resume_step, resume_exempt_keys
FROM attempts
WHERE run_id = $1;

-- name: read_page
-- A page of the series of a read, after (key (2), rank (3)); (4) the ranks, null for all.
SELECT series_id, rank, key
FROM series
WHERE run_id = $1 AND (key, rank) > ($2, $3) AND ($4::integer[] IS NULL OR rank = ANY ($4))
ORDER BY key, rank
LIMIT $5;

-- name: read_page_of_keys
-- The same for named keys (6), each found by the index.
SELECT series_id, rank, key
FROM series
WHERE run_id = $1 AND (key, rank) > ($2, $3) AND ($4::integer[] IS NULL OR rank = ANY ($4))
    AND key = ANY ($6::text[])
ORDER BY key, rank
LIMIT $5;

-- name: series_by_ids
SELECT series_id, rank, key
FROM series
WHERE run_id = $1 AND series_id = ANY ($2::bigint[])
ORDER BY key, rank;

-- name: extents
-- The size and the exact first and last visible step of each group. Chunks that
-- cross a bound are looked into; the others say it all in their row.
-- (1) run, (2) series ids, (3) their groups, (4) which are exempt from resume steps,
-- (5) first step, (6) last step, (7) attempts that are hidden, (8) from which step on,
-- (9) whether attempts are kept apart
SELECT
    position,
    attempt,
    count(*) AS chunk_count,
    sum(point_count)::bigint AS point_count,
    min(first_step) AS first_step,
    max(last_step) AS last_step
FROM (
    SELECT
        u.position,
        CASE WHEN $9::boolean THEN c.attempt ELSE 0 END AS attempt,
        length(c.point_values) / 8 AS point_count,
        CASE WHEN whole THEN c.first_step ELSE inside.first_step END AS first_step,
        CASE WHEN whole THEN c.last_step ELSE inside.last_step END AS last_step
    FROM unnest($2::bigint[], $3::integer[], $4::boolean[]) AS u (series_id, position, exempt)
    CROSS JOIN LATERAL (
        SELECT *
        FROM metric_chunks
        WHERE run_id = $1 AND series_id = u.series_id AND first_step <= $6 AND last_step >= $5
        OFFSET 0 -- each series by the index, and not, perhaps, all chunks of the run
    ) c
    LEFT JOIN unnest($7::integer[], $8::bigint[]) AS h (attempt, hidden_from_step)
        ON h.attempt = c.attempt AND NOT u.exempt
    CROSS JOIN LATERAL (
        SELECT least($6::bigint, h.hidden_from_step - 1) AS last_visible_step
    ) b
    CROSS JOIN LATERAL (
        SELECT c.first_step >= $5 AND c.last_step <= b.last_visible_step AS whole
    ) w
    CROSS JOIN LATERAL (
        SELECT min(step) AS first_step, max(step) AS last_step
        FROM (
            SELECT chunk_step(c.first_step, c.last_step, c.step_offsets, length(c.point_values) / 8, place)
                AS step
            FROM generate_series(0, length(c.point_values) / 8 - 1) AS p (place)
        ) s
        WHERE NOT whole AND step BETWEEN $5 AND b.last_visible_step
    ) inside
    WHERE c.first_step <= b.last_visible_step
) chunk
GROUP BY position, attempt
ORDER BY position, attempt;

-- name: chunks_by_series
-- The chunks of many groups of one series each. Each series is walked in index
-- order, in the order of (2): nothing is sorted, nothing is held.
-- (1) run, (2) series ids, (3) their groups, (4) their ranks, (5) first step, (6) last step
SELECT
    length(c.point_values) / 4 + (c.step_offsets IS NOT NULL)::integer, u.position, u.rank,
    c.attempt, c.first_step, c.last_step, c.first_time, c.point_values, c.time_offsets, c.step_offsets
FROM unnest($2::bigint[], $3::integer[], $4::integer[]) AS u (series_id, position, rank)
CROSS JOIN LATERAL (
    SELECT *
    FROM metric_chunks
    WHERE run_id = $1 AND series_id = u.series_id AND first_step <= $6 AND last_step >= $5
    ORDER BY first_step
) c;

-- name: chunks_by_group
-- The same for groups of several series, or with attempts kept apart (7). Each group is
-- sorted by itself: a sort of all would write every chunk to the database's disk first.
SELECT
    length(c.point_values) / 4 + (c.step_offsets IS NOT NULL)::integer, g.position, c.rank,
    c.attempt, c.first_step, c.last_step, c.first_time, c.point_values, c.time_offsets, c.step_offsets
FROM (
    SELECT position, array_agg(series_id) AS series_ids, array_agg(rank) AS ranks
    FROM unnest($2::bigint[], $3::integer[], $4::integer[]) AS u (series_id, position, rank)
    GROUP BY position
    ORDER BY position
) g
CROSS JOIN LATERAL (
    SELECT m.*, u.rank
    FROM unnest(g.series_ids, g.ranks) AS u (series_id, rank)
    CROSS JOIN LATERAL (
        SELECT *
        FROM metric_chunks
        WHERE run_id = $1 AND series_id = u.series_id AND first_step <= $6 AND last_step >= $5
        OFFSET 0 -- as in extents
    ) m
    ORDER BY CASE WHEN $7::boolean THEN m.attempt ELSE 0 END, m.first_step
) c;

-- name: chunk_outlines
-- What chunks say without being opened, to choose those that down-sampling needs.
-- (1) run, (2) series, (3) first step, (4) last step
SELECT
    c.first_step,
    c.last_step,
    c.min_value,
    c.max_value,
    c.attempt,
    length(c.point_values) / 8,
    (c.step_offsets IS NULL)::integer
FROM metric_chunks c
WHERE c.run_id = $1 AND c.series_id = $2 AND c.first_step <= $4 AND c.last_step >= $3
ORDER BY c.first_step;

-- name: chunks_at_steps
-- Some chunks of one series, by their first steps (5), which the caller knows to differ.
-- (1) run, (2) series, (3) its group, (4) its rank
SELECT
    length(c.point_values) / 4 + (c.step_offsets IS NOT NULL)::integer, $3::integer, $4::integer,
    c.attempt, c.first_step, c.last_step, c.first_time, c.point_values, c.time_offsets, c.step_offsets
FROM metric_chunks c
WHERE c.run_id = $1 AND c.series_id = $2 AND c.first_step = ANY ($5::bigint[])
ORDER BY c.first_step;

-- name: take_time
-- For the rest of the transaction: a reader may be slow for (1), a time with its unit, in which
-- PostgreSQL cannot send, or has nothing to do. No row is locked meanwhile.
SELECT
    set_config('tcp_user_timeout', $1, true),
    set_config('idle_in_transaction_session_timeout', $1, true);

-- name: hold_place
-- Until the transaction ends, compaction does not settle what the run (1) commits: no_place_held
-- in compaction.sql asks for the same lock, alone.
SELECT pg_advisory_xact_lock_shared(hashtextextended('headrace: followers of ' || ($1::uuid)::text, 0));

-- name: watermark_sum
-- Following. Two numbers that only grow tell whether anything was committed.
SELECT count(*) AS writers, coalesce(sum(committed_sequence), 0)::bigint AS committed
FROM writers
WHERE run_id = $1;

-- name: watermarks
SELECT writer_no, rank, attempt, committed_sequence, compacted_sequence
FROM writers
WHERE run_id = $1;

-- name: writer_blocks
SELECT writer_no, series_ids, point_counts, last_steps
FROM writer_summaries
WHERE run_id = $1 AND writer_no = ANY ($2::bigint[]);

-- name: chunks_since
-- Chunks that writers have committed since a reader looked: (2) series, (3) groups,
-- (4) ranks, (5) writers, (6) the sequence read before, (7) (8) the first steps to look
-- at. A chunk of a series lies at its steps in the index, not at its sequence.
SELECT
    length(c.point_values) / 4 + (c.step_offsets IS NOT NULL)::integer, u.position, u.rank,
    c.attempt, c.first_step, c.last_step, c.first_time, c.point_values, c.time_offsets, c.step_offsets
FROM unnest(
    $2::bigint[], $3::integer[], $4::integer[], $5::bigint[], $6::bigint[], $7::bigint[],
    $8::bigint[]
) AS u (series_id, position, rank, writer_no, sequence, first_step, last_step)
CROSS JOIN LATERAL (
    SELECT *
    FROM loose_chunks
    WHERE run_id = $1 AND series_id = u.series_id AND first_step BETWEEN u.first_step AND u.last_step
        AND writer_no = u.writer_no AND last_sequence > u.sequence
    ORDER BY first_step
) c;

-- name: series_page
-- A page of series in the order of ListSeries: (2) (3) the bounds that a prefix sets,
-- (4) (5) the (key, rank) after which the page begins.
SELECT series_id, rank, key
FROM series
WHERE run_id = $1 AND key >= $2 AND key <= $3 AND (key, rank) > ($4, $5)
ORDER BY key, rank
LIMIT $6;

-- name: summaries_of_series
SELECT series_id, attempt, point_count, last_step, last_time_us, last_value, min_value, max_value
FROM metric_summaries
WHERE run_id = $1 AND series_id = ANY ($2::bigint[]);

-- name: cut_summaries
-- The summaries of attempts that a later one cuts, from their chunks: (2) series,
-- (3) attempts, (4) from which step on they are hidden. Chunks below that step are walked once;
-- only those that cross it, and those that hold the last point, are looked into.
SELECT
    u.series_id, u.attempt, cut.point_count, cut.last_step, last.time_us AS last_time_us,
    last.value AS last_value, cut.min_value, coalesce(cut.max_value, 'NaN') AS max_value
FROM unnest($2::bigint[], $3::integer[], $4::bigint[]) AS u (series_id, attempt, hidden_from_step)
CROSS JOIN LATERAL (
    SELECT
        sum(point_count)::bigint AS point_count,
        max(last_step) AS last_step,
        min(min_value) AS min_value,
        max(max_value) AS max_value,
        array_agg(first_step) FILTER (WHERE last_step = greatest_step) AS first_steps
    FROM (
        SELECT *, max(last_step) OVER () AS greatest_step
        FROM (
            SELECT
                c.first_step,
                CASE WHEN whole THEN length(c.point_values) / 8 ELSE inside.point_count END
                    AS point_count,
                CASE WHEN whole THEN c.last_step ELSE inside.last_step END AS last_step,
                CASE WHEN whole THEN c.min_value ELSE inside.min_value END AS min_value,
                nullif(CASE WHEN whole THEN c.max_value ELSE inside.max_value END, 'NaN')
                    AS max_value
            FROM metric_chunks c
            CROSS JOIN LATERAL (SELECT c.last_step < u.hidden_from_step AS whole) w
            CROSS JOIN LATERAL (
                SELECT
                    count(*) AS point_count,
                    max(step) AS last_step,
                    min(value) AS min_value,
                    max(nullif(value, 'NaN')) AS max_value
                FROM (
                    SELECT
                        packed_float8(c.point_values, place) AS value,
                        chunk_step(c.first_step, c.last_step, c.step_offsets, length(c.point_values) / 8, place)
                            AS step
                    FROM generate_series(0, length(c.point_values) / 8 - 1) AS p (place)
                ) s
                WHERE NOT whole AND step < u.hidden_from_step
            ) inside
            WHERE c.run_id = $1 AND c.series_id = u.series_id AND c.attempt = u.attempt
                AND c.first_step < u.hidden_from_step
            OFFSET 0                        -- else the window would hold the packed columns
        ) chunk
    ) compared
) cut
CROSS JOIN LATERAL (
    SELECT time_us, value
    FROM (
        SELECT
            c.first_time + packed_int4(c.time_offsets, place) AS time_us,
            packed_float8(c.point_values, place) AS value
        FROM metric_chunks c
        CROSS JOIN LATERAL generate_series(0, length(c.point_values) / 8 - 1) AS p (place)
        WHERE c.run_id = $1 AND c.series_id = u.series_id AND c.attempt = u.attempt
            AND c.first_step = ANY (cut.first_steps)
            AND cut.last_step
                = chunk_step(c.first_step, c.last_step, c.step_offsets, length(c.point_values) / 8, place)
    ) at_last_step
    ORDER BY time_us DESC, value <> 'NaN' DESC, value DESC
    LIMIT 1
) last;
