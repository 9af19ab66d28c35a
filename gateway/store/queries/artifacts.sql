-- Artifacts, their blobs, and uploads. See migration 0003 for the meaning of the tables.

-- name: lock_run
-- Taken first by every transaction that changes a run's artifacts: they are short,
-- and one at a time keeps files and folders apart. Purging takes the same lock.
SELECT experiment_id, purged_at IS NOT NULL AS purged
FROM runs
WHERE run_id = $1 AND workspace_id = $2
FOR NO KEY UPDATE;

-- name: get_run
SELECT experiment_id, purged_at IS NOT NULL AS purged
FROM runs
WHERE run_id = $1 AND workspace_id = $2;

-- name: find_path_conflict
-- $2 the path, $3 its parents, $4 the path with `/`, $5 with the character after `/`.
SELECT path
FROM artifacts
WHERE run_id = $1
    AND (path = ANY ($3::text[]) OR (path >= $4 AND path < $5))
    AND path <> $2
LIMIT 1;

-- name: reference_blob
UPDATE blobs SET reference_count = reference_count + 1
WHERE experiment_id = $1 AND digest = $2 AND size = $3
RETURNING part_sha256s;

-- name: insert_blob
INSERT INTO blobs (experiment_id, digest, size, object_key, part_sha256s, reference_count)
VALUES ($1, $2, $3, $4, $5, 1)
ON CONFLICT (experiment_id, digest, size)
    DO UPDATE SET reference_count = blobs.reference_count + 1
RETURNING object_key;

-- name: lock_blobs
-- $1 to $3: which. In one order everywhere: no deadlocks.
SELECT 1
FROM blobs AS b
JOIN unnest($1::bigint[], $2::bytea[], $3::bigint[]) AS r(experiment_id, digest, size)
    ON b.experiment_id = r.experiment_id AND b.digest = r.digest AND b.size = r.size
ORDER BY b.experiment_id, b.digest, b.size
FOR NO KEY UPDATE OF b;

-- name: release_blobs
-- $4: how many artifacts let go of each.
UPDATE blobs AS b SET reference_count = b.reference_count - r.count
FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[])
    AS r(experiment_id, digest, size, count)
WHERE b.experiment_id = r.experiment_id AND b.digest = r.digest AND b.size = r.size;

-- name: delete_unreferenced_blobs
DELETE FROM blobs AS b
USING unnest($1::bigint[], $2::bytea[], $3::bigint[]) AS r(experiment_id, digest, size)
WHERE b.experiment_id = r.experiment_id AND b.digest = r.digest AND b.size = r.size
    AND b.reference_count <= 0
RETURNING b.object_key;

-- name: get_artifact_for_update
SELECT experiment_id, digest, size
FROM artifacts
WHERE run_id = $1 AND path = $2
FOR UPDATE;

-- name: put_artifact
INSERT INTO artifacts (run_id, path, experiment_id, digest, size, content_type)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (run_id, path) DO UPDATE SET
    experiment_id = excluded.experiment_id,
    digest = excluded.digest,
    size = excluded.size,
    content_type = excluded.content_type,
    created_at = excluded.created_at
RETURNING created_at;

-- name: touch_artifact
-- The same content again: the artifact stays as it is but for its media type.
UPDATE artifacts SET content_type = $3
WHERE run_id = $1 AND path = $2
RETURNING created_at;

-- name: get_artifact
SELECT path, experiment_id, digest, size, content_type, created_at
FROM artifacts
WHERE run_id = $1 AND path = $2;

-- name: get_blob
SELECT object_key, part_sha256s
FROM blobs
WHERE experiment_id = $1 AND digest = $2 AND size = $3;

-- name: list_recursive
-- $2 the first path, $3 the end (exclusive), $4 how many.
SELECT path, digest, size, content_type, created_at
FROM artifacts
WHERE run_id = $1 AND path >= $2 AND ($3 = '' OR path < $3)
ORDER BY path
LIMIT $4;

-- name: list_folder
-- Direct children by a loose index scan: each step jumps over a whole subfolder.
-- $2 the first path, $3 the end (exclusive), $4 how many, $5 the length of the
-- folder's prefix in characters.
WITH RECURSIVE child (path, entry, position) AS (
    (
        SELECT
            b.path,
            CASE WHEN strpos(substr(b.path, $5 + 1), '/') > 0
                THEN left(b.path, $5 + strpos(substr(b.path, $5 + 1), '/')) ELSE b.path END,
            1
        FROM artifacts AS b
        WHERE b.run_id = $1 AND b.path >= $2 AND ($3 = '' OR b.path < $3)
        ORDER BY b.path
        LIMIT 1
    )
    UNION ALL
    SELECT following.path, following.entry, child.position + 1
    FROM child
    CROSS JOIN LATERAL (
        SELECT
            a.path,
            CASE WHEN strpos(substr(a.path, $5 + 1), '/') > 0
                THEN left(a.path, $5 + strpos(substr(a.path, $5 + 1), '/')) ELSE a.path END
                AS entry
        FROM artifacts AS a
        WHERE a.run_id = $1
            -- `0` follows `/`: nothing of the subfolder is at or above it.
            AND a.path > CASE WHEN right(child.entry, 1) = '/'
                THEN left(child.entry, -1) || '0' ELSE child.entry END COLLATE "C"
            AND ($3 = '' OR a.path < $3)
        ORDER BY a.path
        LIMIT 1
    ) AS following
    WHERE child.position < $4
)
SELECT child.entry, a.digest, a.size, a.content_type, a.created_at
FROM child
LEFT JOIN artifacts AS a ON a.run_id = $1 AND a.path = child.entry
ORDER BY child.position;

-- name: delete_artifacts
-- $2 the path, $3 and $4 the range of what is below it (empty when not recursive).
DELETE FROM artifacts
WHERE run_id = $1 AND (path = $2 OR (path >= $3 AND path < $4))
RETURNING experiment_id, digest, size;

-- name: insert_upload
-- Nothing is returned when the same content is being uploaded to the path already.
INSERT INTO uploads (
    run_id, upload_id, path, experiment_id, digest, size, content_type, part_sha256s,
    object_key, resumable
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT DO NOTHING
RETURNING upload_id;

-- name: find_upload
SELECT
    run_id, upload_id, path, experiment_id, digest, size, content_type, part_sha256s,
    object_key, s3_upload_id, progressed_at
FROM uploads
WHERE run_id = $1 AND path = $2 AND digest = $3 AND size = $4 AND content_type = $5
    AND resumable;

-- name: get_upload
SELECT
    run_id, upload_id, path, experiment_id, digest, size, content_type, part_sha256s,
    object_key, s3_upload_id, progressed_at
FROM uploads
WHERE run_id = $1 AND upload_id = $2;

-- name: name_upload
-- The first gateway to name the multipart upload wins.
UPDATE uploads SET s3_upload_id = coalesce(s3_upload_id, $3)
WHERE run_id = $1 AND upload_id = $2
RETURNING s3_upload_id;

-- name: touch_upload
UPDATE uploads SET progressed_at = now()
WHERE run_id = $1 AND upload_id = $2
RETURNING progressed_at;

-- name: put_part
INSERT INTO upload_parts (run_id, upload_id, part_number, etag)
VALUES ($1, $2, $3, $4)
ON CONFLICT (run_id, upload_id, part_number) DO UPDATE SET etag = excluded.etag;

-- name: list_parts
SELECT part_number, etag
FROM upload_parts
WHERE run_id = $1 AND upload_id = $2
ORDER BY part_number;

-- name: delete_upload
DELETE FROM uploads
WHERE run_id = $1 AND upload_id = $2
RETURNING path, experiment_id, digest, size, content_type, part_sha256s, object_key, s3_upload_id;

-- name: delete_parts
DELETE FROM upload_parts
WHERE run_id = $1 AND upload_id = $2;

-- name: list_expired_uploads
SELECT run_id, upload_id, path, size, object_key
FROM uploads
WHERE progressed_at < now() - make_interval(secs => $1)
ORDER BY progressed_at
LIMIT $2;

-- name: put_deletion
INSERT INTO blob_deletions (object_key, s3_upload_id)
VALUES ($1, $2)
ON CONFLICT (object_key) DO NOTHING;

-- name: put_deletions
INSERT INTO blob_deletions (object_key)
SELECT unnest($1::text[])
ON CONFLICT (object_key) DO NOTHING;

-- name: list_deletions
-- $1: those after this key.
SELECT object_key, s3_upload_id
FROM blob_deletions
WHERE object_key > $1
ORDER BY object_key
LIMIT $2;

-- name: delete_deletion
DELETE FROM blob_deletions
WHERE object_key = $1;

-- name: list_known_keys
-- Which of these keys may not be touched by the reconciler.
SELECT object_key FROM blobs WHERE object_key = ANY ($1::text[])
UNION
SELECT object_key FROM uploads WHERE object_key = ANY ($1::text[]);

-- name: list_upload_ids
SELECT object_key, s3_upload_id
FROM uploads
WHERE object_key = ANY ($1::text[]);

-- name: list_blob_keys
-- The keys of stored content, page by page: each must have an object.
SELECT object_key, size
FROM blobs
WHERE object_key > $1
ORDER BY object_key
LIMIT $2;

-- name: get_namespace
SELECT namespace FROM artifact_namespace;

-- name: purge_artifacts
-- $2 at most so many.
DELETE FROM artifacts
WHERE ctid = ANY (ARRAY(SELECT ctid FROM artifacts WHERE run_id = $1 LIMIT $2))
RETURNING experiment_id, digest, size;

-- name: list_uploads
-- $2 at most so many.
SELECT upload_id FROM uploads WHERE run_id = $1 LIMIT $2;
