-- Searches themselves are compiled by search_sql.

-- name: prepare
-- A plan for these values: a generic one cannot know that a key is rare. No search
-- may hold a connection for long.
SET LOCAL plan_cache_mode = force_custom_plan;
SET LOCAL statement_timeout = '20s';
