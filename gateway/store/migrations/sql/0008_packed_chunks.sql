-- The columns of points become packed bytes: PostgreSQL reads and writes an array
-- element by element, and bytes by one copy (docs/decisions/0012-packed-chunks.md).
--
-- Made before the first release: gateways of before cannot run beside it. Their COPY
-- names a column that is gone: it fails, and acknowledges nothing, until they are stopped.
-- It rewrites every chunk, a million points in a second or two, and locks the table while
-- it does. Privileges on metric_chunks and stored_chunks have to be granted again.

DROP INDEX metric_chunks_loose, metric_chunks_merged;
ALTER TABLE metric_chunks RENAME TO metric_chunks_of_arrays;
ALTER VIEW stored_chunks RENAME TO stored_chunks_of_arrays;

-- The points: 1 to 158 of one series of one writer a row, ascending in step.
-- No foreign key and no unique index: both cost per row, and the writer's
-- sequence has removed duplicates before a row gets here.
CREATE TABLE metric_chunks (
    run_id uuid NOT NULL,
    series_id bigint NOT NULL,
    writer_no bigint NOT NULL,
    last_sequence bigint NOT NULL,      -- of the flush; (writer_no, last_sequence) tells a follower what is new; 0 when merged
    first_step bigint NOT NULL,
    last_step bigint NOT NULL,
    first_time bigint NOT NULL,         -- µs since 1970-01-01 UTC, of the first point
    min_value float8 NOT NULL,          -- NaN ignored; NaN when all are
    max_value float8 NOT NULL,
    attempt integer NOT NULL,
    -- Packed columns: big-endian, as int4send and float8send write them, end to end.
    step_offsets bytea,                 -- int4 step - first_step; NULL when the steps are an arithmetic progression
    time_offsets bytea NOT NULL,        -- int4 time - first_time, µs
    point_values bytea NOT NULL         -- float8
);
ALTER TABLE metric_chunks REPLICA IDENTITY FULL;
ALTER TABLE metric_chunks SET (
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_scale_factor = 0.05   -- for the reason given in 0005
);
-- No query filters on packed columns.
ALTER TABLE metric_chunks
    ALTER COLUMN step_offsets SET STATISTICS 0,
    ALTER COLUMN time_offsets SET STATISTICS 0,
    ALTER COLUMN point_values SET STATISTICS 0;

INSERT INTO metric_chunks
SELECT
    run_id, series_id, writer_no, last_sequence, first_step, last_step, first_time, min_value,
    max_value, attempt,
    (SELECT string_agg(int4send(o), '' ORDER BY n) FROM unnest(step_offsets) WITH ORDINALITY p (o, n)),
    (SELECT string_agg(int4send(o), '' ORDER BY n) FROM unnest(time_offsets) WITH ORDINALITY p (o, n)),
    (SELECT string_agg(float8send(v), '' ORDER BY n) FROM unnest(values) WITH ORDINALITY p (v, n))
FROM metric_chunks_of_arrays;

-- Two indexes, for the reason given in 0007.
CREATE INDEX metric_chunks_loose ON metric_chunks (run_id, series_id, first_step)
    WHERE last_sequence > 0;
CREATE INDEX metric_chunks_merged ON metric_chunks (run_id, series_id, first_step)
    WHERE last_sequence = 0;

-- All chunks, by whichever index. To be read from, not written to.
CREATE VIEW stored_chunks AS
SELECT * FROM metric_chunks WHERE last_sequence > 0
UNION ALL
SELECT * FROM metric_chunks WHERE last_sequence = 0;

-- What stands at a place of a packed column, the first being 0. No function here is
-- STRICT: PostgreSQL would not inline it, and a call costs more than what it does.
CREATE FUNCTION packed_int4(packed bytea, place integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN
    (get_byte(packed, place * 4) << 24)
    | (get_byte(packed, place * 4 + 1) << 16)
    | (get_byte(packed, place * 4 + 2) << 8)
    | get_byte(packed, place * 4 + 3);

-- The step of a point of a chunk. Without offsets the steps are an arithmetic progression;
-- a chunk of one point, and one that repeats a single step, has stride 0.
CREATE FUNCTION chunk_step(
    first_step bigint, last_step bigint, step_offsets bytea, points integer, place integer
) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN first_step + coalesce(
    packed_int4(step_offsets, place)::bigint,
    place * ((last_step - first_step) / greatest(points - 1, 1))
);

-- IEEE 754 binary64: a sign, 11 bits of exponent, 52 bits of fraction. All arithmetic on
-- it is exact: a double holds the fraction, and powers of two only move the exponent.
CREATE FUNCTION packed_float8_exponent(packed bytea, place integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ((get_byte(packed, place * 8) & 127) << 4) | (get_byte(packed, place * 8 + 1) >> 4);

CREATE FUNCTION packed_float8_fraction(packed bytea, place integer) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN
    (((get_byte(packed, place * 8 + 1) & 15) << 16)
        | (get_byte(packed, place * 8 + 2) << 8)
        | get_byte(packed, place * 8 + 3)) / 1048576::float8        -- 2 ^ 20
    + ((get_byte(packed, place * 8 + 4) << 16)
        | (get_byte(packed, place * 8 + 5) << 8)
        | get_byte(packed, place * 8 + 6)) / 17592186044416::float8 -- 2 ^ 44
    + get_byte(packed, place * 8 + 7) / 4503599627370496::float8;   -- 2 ^ 52

CREATE FUNCTION packed_float8(packed bytea, place integer) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN
    CASE WHEN get_byte(packed, place * 8) < 128 THEN 1::float8 ELSE -1 END
    * CASE packed_float8_exponent(packed, place)
        WHEN 0 THEN packed_float8_fraction(packed, place) * 2.2250738585072014e-308 -- 2 ^ -1022
        WHEN 2047 THEN
            CASE packed_float8_fraction(packed, place) WHEN 0 THEN 'Infinity'::float8 ELSE 'NaN' END
        ELSE
            (1 + packed_float8_fraction(packed, place))
            * power(2::float8, packed_float8_exponent(packed, place) - 1023)
    END;

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
JOIN stored_chunks c ON c.run_id = s.run_id AND c.series_id = s.series_id
CROSS JOIN LATERAL generate_series(0, length(c.point_values) / 8 - 1) AS p (place);

DROP VIEW stored_chunks_of_arrays;
DROP TABLE metric_chunks_of_arrays;

ANALYZE metric_chunks;
