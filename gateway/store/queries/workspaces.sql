-- name: create
-- Nothing when the name is taken, or when another call with this request id was faster.
INSERT INTO workspaces (name, request_id) VALUES ($1, $2)
ON CONFLICT DO NOTHING
RETURNING workspace_id, name, created_at, archived_at;

-- name: find
SELECT workspace_id, name, created_at, archived_at FROM workspaces WHERE name = $1;

-- name: find_request
SELECT workspace_id, name, created_at, archived_at FROM workspaces WHERE request_id = $1;

-- name: page
-- $1 after this name, $2 with archived ones, $3 only this one (NULL: all), $4 at most
SELECT workspace_id, name, created_at, archived_at
FROM workspaces
WHERE name > $1 AND ($2 OR archived_at IS NULL) AND ($3::bigint IS NULL OR workspace_id = $3)
ORDER BY name
LIMIT $4;

-- name: archive
UPDATE workspaces SET archived_at = coalesce(archived_at, now())
WHERE name = $1
RETURNING workspace_id, name, created_at, archived_at;
