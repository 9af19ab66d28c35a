-- Merged chunks get a table of their own (docs/decisions/0014-merged-chunks-apart.md).
--
-- Made before the first release: gateways of before cannot run beside it. Their COPY finds a
-- view where the table was: it fails, and acknowledges nothing, until they are stopped.
-- Privileges on merged_chunks have to be granted.

ALTER TABLE metric_chunks RENAME TO loose_chunks;

-- As flushes have stored them: until they are merged, or for good when they are long.
COMMENT ON TABLE loose_chunks IS 'chunks as flushes stored them; read metric_chunks';

CREATE TABLE merged_chunks (LIKE loose_chunks INCLUDING STORAGE);
COMMENT ON TABLE merged_chunks IS 'chunks as compaction stored them; read metric_chunks';
ALTER TABLE merged_chunks REPLICA IDENTITY FULL;
ALTER TABLE merged_chunks SET (autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE merged_chunks
    ALTER COLUMN step_offsets SET STATISTICS 0,
    ALTER COLUMN time_offsets SET STATISTICS 0,
    ALTER COLUMN point_values SET STATISTICS 0;

INSERT INTO merged_chunks SELECT * FROM loose_chunks WHERE last_sequence = 0;
DELETE FROM loose_chunks WHERE last_sequence = 0;

DROP INDEX metric_chunks_loose, metric_chunks_merged;
CREATE INDEX loose_chunks_by_step ON loose_chunks (run_id, series_id, first_step);
CREATE INDEX merged_chunks_by_step ON merged_chunks (run_id, series_id, first_step);

-- All chunks, for reads and for the views of points, which follow it to its new name. To be
-- read from, not written to.
ALTER VIEW stored_chunks RENAME TO metric_chunks;
CREATE OR REPLACE VIEW metric_chunks AS
SELECT * FROM loose_chunks
UNION ALL
SELECT * FROM merged_chunks;
