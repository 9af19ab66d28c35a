-- Cleanup: what its decision needs to know, and soft deletion under the same rules.

-- name: find_experiment
-- $1 workspace, $2 name
SELECT e.experiment_id
FROM experiments e
JOIN workspaces w USING (workspace_id)
WHERE w.name = $1 AND e.name = $2;

-- name: runs
-- $1 experiment, $2 the tag that protects, $3 the key of the metric, NULL without, $4
-- whether its greatest value counts
SELECT
    r.run_id, r.name, r.parent_run_id, r.state = 5 AS lost,
    CASE WHEN r.state <> 1 THEN r.ended_at END AS ended_at,
    EXISTS (SELECT FROM run_tags t WHERE t.run_id = r.run_id AND t.key = $2) AS protected,
    CASE WHEN $4::boolean THEN m.max_value ELSE m.min_value END AS value,
    EXISTS (
        SELECT FROM runs c
        WHERE c.parent_run_id = r.run_id AND c.experiment_id <> r.experiment_id
            AND c.deleted_at IS NULL AND c.purged_at IS NULL
    ) AS has_children_elsewhere
FROM runs r
LEFT JOIN run_metrics m ON m.run_id = r.run_id AND m.key = $3::text
WHERE r.experiment_id = $1 AND r.deleted_at IS NULL AND r.purged_at IS NULL
ORDER BY r.started_at DESC, r.run_id;

-- name: delete
-- $1 run, $2 the tag that protects, $3 for how many seconds a lost run counts as running.
-- Whatever has changed since the decision counts.
UPDATE runs r SET deleted_at = now()
WHERE r.run_id = $1 AND r.deleted_at IS NULL AND r.purged_at IS NULL AND r.state <> 1
    AND (r.state <> 5 OR r.ended_at <= now() - make_interval(secs => $3))
    AND NOT EXISTS (SELECT FROM run_tags t WHERE t.run_id = $1 AND t.key = $2)
    AND NOT EXISTS (
        SELECT FROM runs c
        WHERE c.parent_run_id = $1 AND c.deleted_at IS NULL AND c.purged_at IS NULL
    )
RETURNING true;
