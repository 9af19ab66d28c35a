-- What the doctor asks PostgreSQL. Read-only.

-- name: get_settings
SELECT name, setting, unit, current_setting(name) AS shown
FROM pg_settings
WHERE name = ANY ($1::text[]);

-- name: get_server
SELECT
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_version') AS version,
    current_database() AS database_name,
    current_user AS user_name,
    has_schema_privilege(current_schema(), 'CREATE') AS can_create,
    extract(epoch FROM clock_timestamp())::float8 AS clock_s;

-- name: list_missing_privileges
-- On all tables, and on the one view that the gateway reads; the others are for people.
SELECT c.relname AS table_name, p.privilege
FROM pg_class AS c
CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (privilege)
WHERE c.relnamespace = current_schema()::regnamespace
    AND (
        c.relkind IN ('r', 'p')
        OR (c.relkind = 'v' AND c.relname = 'metric_chunks' AND p.privilege = 'SELECT')
    )
    AND NOT has_table_privilege(c.oid, p.privilege)
ORDER BY 1, 2;

-- name: count_other_connections
SELECT count(*)
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND application_name NOT LIKE 'headrace-%';
