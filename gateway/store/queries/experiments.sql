-- Experiments. $1 is the workspace unless said.

-- name: find
-- $2 name
SELECT experiment_id, deleted_at FROM experiments WHERE workspace_id = $1 AND name = $2;

-- name: find_to_keep
-- $2 name. Nobody deletes or renames it before the transaction ends.
SELECT experiment_id, deleted_at FROM experiments WHERE workspace_id = $1 AND name = $2 FOR SHARE;

-- name: create
-- $2 name, $3 description, $4 request id; nothing when another call was faster
INSERT INTO experiments (workspace_id, name, description, request_id) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING
RETURNING experiment_id;

-- name: find_request
-- $2 request id
SELECT experiment_id FROM experiments WHERE workspace_id = $1 AND request_id = $2;

-- name: read
-- $2 ids
SELECT
    e.experiment_id, e.name, e.description, e.created_at, e.updated_at, e.deleted_at,
    ARRAY(SELECT key FROM experiment_tags t WHERE t.experiment_id = e.experiment_id ORDER BY key)
        AS tag_keys,
    ARRAY(SELECT value FROM experiment_tags t WHERE t.experiment_id = e.experiment_id ORDER BY key)
        AS tag_values
FROM experiments e
WHERE e.workspace_id = $1 AND e.experiment_id = ANY ($2::bigint[]);

-- name: lock
-- $2 id
SELECT name FROM experiments WHERE workspace_id = $1 AND experiment_id = $2
FOR NO KEY UPDATE;

-- name: update
-- $1 id, $2 name, $3 description; NULL leaves one as it is
UPDATE experiments
SET name = coalesce($2, name), description = coalesce($3, description), updated_at = now()
WHERE experiment_id = $1;

-- name: put_tags
-- $1 id
INSERT INTO experiment_tags (experiment_id, key, value)
SELECT $1, u.key, u.value FROM unnest($2::text[], $3::text[]) AS u(key, value)
ON CONFLICT (experiment_id, key) DO UPDATE SET value = excluded.value;

-- name: delete_tags
-- $1 id
DELETE FROM experiment_tags WHERE experiment_id = $1 AND key = ANY ($2::text[]);

-- name: touch
-- $1 id
UPDATE experiments SET updated_at = now() WHERE experiment_id = $1;

-- name: delete
-- $1 id
UPDATE experiments SET deleted_at = now(), updated_at = now()
WHERE experiment_id = $1 AND deleted_at IS NULL;

-- name: restore
-- $1 id
UPDATE experiments SET deleted_at = NULL, updated_at = now()
WHERE experiment_id = $1 AND deleted_at IS NOT NULL;

-- name: ids_by_name
-- $2 names
SELECT experiment_id, name FROM experiments WHERE workspace_id = $1 AND name = ANY ($2::text[]);

-- name: ids
-- $2 ids
SELECT experiment_id FROM experiments
WHERE workspace_id = $1 AND experiment_id = ANY ($2::bigint[]);

-- name: all_ids
-- $2 whether deleted ones too
SELECT experiment_id FROM experiments
WHERE workspace_id = $1 AND ($2 OR deleted_at IS NULL)
ORDER BY experiment_id;
