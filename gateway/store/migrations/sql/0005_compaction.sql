-- When a compactor last looked at the run's writers (see writers.settled_sequence).
-- A merged chunk has last_sequence 0: nobody follows it, nobody merges it again.
ALTER TABLE runs ADD settled_at timestamptz NOT NULL DEFAULT '-infinity';

-- What compaction has merged is dead rows until a vacuum: sooner than by default, so
-- that the table stays small.
ALTER TABLE metric_chunks SET (autovacuum_vacuum_scale_factor = 0.05);
