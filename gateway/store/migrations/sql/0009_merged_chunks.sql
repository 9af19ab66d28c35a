-- Merged chunks get a table of their own (docs/decisions/0014-merged-chunks-apart.md).
--
-- Made before the first release: gateways of before cannot run beside it. Their COPY finds a
-- view where the table was: it fails, and acknowledges nothing, until they are stopped.
-- Privileges on the two tables and on the view have to be granted again.

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

-- All chunks. To be read from, not written to.
CREATE VIEW metric_chunks AS
SELECT * FROM loose_chunks
UNION ALL
SELECT * FROM merged_chunks;

CREATE OR REPLACE VIEW metric_points_raw AS
SELECT
    s.run_id,
    s.key,
    s.rank,
    s.series_id,
    c.attempt,
    chunk_step(c.first_step, c.last_step, c.step_offsets, length(c.point_values) / 8, p.place) AS step,
    -- Seconds and microseconds apart: an interval is multiplied by a double,
    -- which holds each of the two exactly, but not all of their sums.
    timestamptz '1970-01-01 00:00:00+00'
        + ((c.first_time + packed_int4(c.time_offsets, p.place)) / 1000000) * interval '1 second'
        + ((c.first_time + packed_int4(c.time_offsets, p.place)) % 1000000)
            * interval '1 microsecond' AS time,
    packed_float8(c.point_values, p.place) AS value
FROM series s
JOIN metric_chunks c ON c.run_id = s.run_id AND c.series_id = s.series_id
CROSS JOIN LATERAL generate_series(0, length(c.point_values) / 8 - 1) AS p (place);

DROP VIEW stored_chunks;
