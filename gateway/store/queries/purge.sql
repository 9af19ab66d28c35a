-- Purges. $1 is the run unless said. A run whose purge has begun is a tombstone at
-- once: purged_at is set; purge_started_at stays set until nothing of it is left.

-- name: due
-- $1 the grace period in seconds, $2 the tag that protects, $3 the experiment, NULL for all,
-- $4 at most so many, $5 runs that were tried already. The grace period begins when the run
-- could first be purged: a run may have been deleted long before it ended.
SELECT r.run_id
FROM runs r
WHERE r.purged_at IS NULL AND r.deleted_at <= now() - make_interval(secs => $1)
    AND coalesce(r.ended_at, r.deleted_at) <= now() - make_interval(secs => $1)
    AND r.state <> 1 AND ($3::bigint IS NULL OR r.experiment_id = $3)
    AND r.run_id <> ALL ($5::uuid[])
    AND NOT EXISTS (SELECT FROM run_tags t WHERE t.run_id = r.run_id AND t.key = $2)
    AND NOT EXISTS (
        SELECT FROM runs c
        WHERE c.parent_run_id = r.run_id AND c.deleted_at IS NULL AND c.purged_at IS NULL
    )
ORDER BY r.deleted_at
LIMIT $4;

-- name: begun
-- $1 the experiment, NULL for all: purges that somebody has to finish.
SELECT run_id
FROM runs
WHERE purge_started_at IS NOT NULL AND ($1::bigint IS NULL OR experiment_id = $1)
ORDER BY purge_started_at;

-- name: lock_due
-- $2 the grace period, $3 the tag. Nothing when it was restored, protected, or is locked:
-- by a call that changes it, a compactor, or another purge.
SELECT true AS locked
FROM runs r
WHERE r.run_id = $1 AND r.purged_at IS NULL AND r.deleted_at <= now() - make_interval(secs => $2)
    AND coalesce(r.ended_at, r.deleted_at) <= now() - make_interval(secs => $2)
    AND r.state <> 1
    AND NOT EXISTS (SELECT FROM run_tags t WHERE t.run_id = $1 AND t.key = $3)
    AND NOT EXISTS (
        SELECT FROM runs c
        WHERE c.parent_run_id = $1 AND c.deleted_at IS NULL AND c.purged_at IS NULL
    )
FOR UPDATE SKIP LOCKED;

-- name: begin
UPDATE runs
SET purged_at = now(), purge_started_at = now(), name = '', user_name = '', host = '',
    git_commit = '', entry_point = ''
WHERE run_id = $1;

-- name: fence_writers
-- Streams that are still open commit nothing any more: their row is gone. One that is
-- committing now is waited for.
DELETE FROM writers WHERE run_id = $1;

-- name: delete_loose_chunks
-- $2 at most so many, as in all of these.
DELETE FROM loose_chunks
WHERE ctid = ANY (ARRAY(SELECT ctid FROM loose_chunks WHERE run_id = $1 LIMIT $2));

-- name: delete_merged_chunks
DELETE FROM merged_chunks
WHERE ctid = ANY (ARRAY(SELECT ctid FROM merged_chunks WHERE run_id = $1 LIMIT $2));

-- name: delete_summaries
DELETE FROM writer_summaries
WHERE ctid = ANY (ARRAY(SELECT ctid FROM writer_summaries WHERE run_id = $1 LIMIT $2));

-- name: delete_marks
DELETE FROM late_marks
WHERE ctid = ANY (ARRAY(SELECT ctid FROM late_marks WHERE run_id = $1 LIMIT $2));

-- name: delete_metrics
DELETE FROM run_metrics
WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_metrics WHERE run_id = $1 LIMIT $2));

-- name: delete_params
DELETE FROM run_params
WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_params WHERE run_id = $1 LIMIT $2));

-- name: delete_tags
DELETE FROM run_tags
WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_tags WHERE run_id = $1 LIMIT $2));

-- name: delete_summary_values
DELETE FROM run_summary
WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_summary WHERE run_id = $1 LIMIT $2));

-- name: delete_facts
DELETE FROM run_facts
WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_facts WHERE run_id = $1 LIMIT $2));

-- name: delete_datasets
DELETE FROM run_datasets
WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_datasets WHERE run_id = $1 LIMIT $2));

-- name: delete_notes
DELETE FROM run_notes
WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_notes WHERE run_id = $1 LIMIT $2));

-- name: delete_attempts
DELETE FROM attempts
WHERE ctid = ANY (ARRAY(SELECT ctid FROM attempts WHERE run_id = $1 LIMIT $2));

-- name: delete_heartbeats
DELETE FROM run_heartbeats
WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_heartbeats WHERE run_id = $1 LIMIT $2));

-- name: delete_series
DELETE FROM series
WHERE ctid = ANY (ARRAY(SELECT ctid FROM series WHERE run_id = $1 LIMIT $2));

-- name: by_index
-- For `end`: the statistics may still say that a scan of the table finds a row at once.
SET LOCAL enable_seqscan = off;

-- name: end
-- Nothing while any table has a row of the run: two may purge it, and who waited for the other
-- to delete rows counts too few of its own and goes on, whatever the other has yet to come to.
-- A test compares the tables with those of the database.
UPDATE runs SET purge_started_at = NULL
WHERE run_id = $1 AND purge_started_at IS NOT NULL
    AND NOT EXISTS (SELECT FROM artifacts WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM uploads WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM upload_parts WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM loose_chunks WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM merged_chunks WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM writer_summaries WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM late_marks WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM run_metrics WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM run_params WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM run_tags WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM run_summary WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM run_facts WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM run_datasets WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM run_notes WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM attempts WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM run_heartbeats WHERE run_id = $1)
    AND NOT EXISTS (SELECT FROM series WHERE run_id = $1)
RETURNING true;
