-- Merged chunks have an index of their own. In a common one, each page would keep the
-- one or two entries that are left of the hundred and fifty before: pages are freed
-- only when they are empty, and a merged point would cost 50 bytes of index for ever.
CREATE INDEX metric_chunks_loose ON metric_chunks (run_id, series_id, first_step)
    WHERE last_sequence > 0;
CREATE INDEX metric_chunks_merged ON metric_chunks (run_id, series_id, first_step)
    WHERE last_sequence = 0;
DROP INDEX metric_chunks_by_step;

-- All chunks, by whichever index. To be read from, not written to.
CREATE VIEW stored_chunks AS
SELECT * FROM metric_chunks WHERE last_sequence > 0
UNION ALL
SELECT * FROM metric_chunks WHERE last_sequence = 0;

CREATE OR REPLACE VIEW metric_points_raw AS
SELECT
    s.run_id,
    s.key,
    s.rank,
    s.series_id,
    c.attempt,
    -- Without offsets the steps are an arithmetic progression. A chunk of one
    -- point, and one that repeats a single step, has stride 0.
    c.first_step + coalesce(
        p.step_offset::bigint,
        (p.position - 1)
            * ((c.last_step - c.first_step) / greatest(cardinality(c.values) - 1, 1))
    ) AS step,
    -- Seconds and microseconds apart: an interval is multiplied by a double,
    -- which holds each of the two exactly, but not all of their sums.
    timestamptz '1970-01-01 00:00:00+00'
        + ((c.first_time + p.time_offset) / 1000000) * interval '1 second'
        + ((c.first_time + p.time_offset) % 1000000) * interval '1 microsecond' AS time,
    p.value
FROM series s
JOIN stored_chunks c ON c.run_id = s.run_id AND c.series_id = s.series_id
CROSS JOIN LATERAL unnest(c.step_offsets, c.time_offsets, c.values)
    WITH ORDINALITY AS p (step_offset, time_offset, value, position);
