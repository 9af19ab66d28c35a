-- Purges that are under way: whoever comes finishes them. A run is a tombstone from the
-- beginning of its purge (purged_at); purge_started_at is NULL again at its end.
CREATE INDEX runs_purging ON runs (purge_started_at) WHERE purge_started_at IS NOT NULL;
