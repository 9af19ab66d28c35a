-- Bearer tokens: only their SHA-256 is here.

-- name: find
SELECT t.workspace_id, t.name, t.can_write, w.archived_at IS NOT NULL AS archived
FROM tokens t
JOIN workspaces w USING (workspace_id)
WHERE token_sha256 = $1
  AND revoked_at IS NULL
  AND (expires_at IS NULL OR expires_at > now());

-- name: ensure_workspace
INSERT INTO workspaces (name) VALUES ($1) ON CONFLICT (name) DO NOTHING;

-- name: create
INSERT INTO tokens (workspace_id, name, token_sha256, can_write, expires_at)
SELECT workspace_id, $2, $3, $4, now() + make_interval(secs => $5::float8)
FROM workspaces
WHERE name = $1
RETURNING token_id;

-- name: list
SELECT token_id, w.name AS workspace, t.name, can_write, t.created_at, expires_at, revoked_at
FROM tokens t
JOIN workspaces w USING (workspace_id)
ORDER BY token_id;

-- name: revoke
UPDATE tokens SET revoked_at = coalesce(revoked_at, now()) WHERE token_id = $1 RETURNING token_id;
