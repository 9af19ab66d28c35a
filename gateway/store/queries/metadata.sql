-- What is said of runs. Arrays are sorted by their keys, so that concurrent
-- transactions lock rows in one order.

-- name: insert_params
INSERT INTO run_params (run_id, experiment_id, key, value)
SELECT u.run_id, r.experiment_id, u.key, u.value
FROM unnest($1::uuid[], $2::text[], $3::text[]) WITH ORDINALITY AS u(run_id, key, value, place)
JOIN runs r ON r.run_id = u.run_id
ORDER BY u.place
ON CONFLICT (run_id, key) DO NOTHING;

-- name: differing_params
SELECT u.place, p.value
FROM unnest($1::uuid[], $2::text[], $3::text[]) WITH ORDINALITY AS u(run_id, key, value, place)
JOIN run_params p ON p.run_id = u.run_id AND p.key = u.key
WHERE p.value <> u.value
ORDER BY u.place;

-- name: put_tags
INSERT INTO run_tags AS t (run_id, experiment_id, key, value)
SELECT u.run_id, r.experiment_id, u.key, u.value
FROM unnest($1::uuid[], $2::text[], $3::text[]) WITH ORDINALITY AS u(run_id, key, value, place)
JOIN runs r ON r.run_id = u.run_id
ORDER BY u.place
ON CONFLICT (run_id, key) DO UPDATE SET value = excluded.value WHERE t.value <> excluded.value;

-- name: delete_tags
DELETE FROM run_tags t
USING unnest($1::uuid[], $2::text[]) AS u(run_id, key)
WHERE t.run_id = u.run_id AND t.key = u.key;

-- name: put_notes
INSERT INTO run_notes (run_id, notes)
SELECT u.run_id, u.notes FROM unnest($1::uuid[], $2::text[]) AS u(run_id, notes)
ON CONFLICT (run_id) DO UPDATE SET notes = excluded.notes;

-- name: put_summary
INSERT INTO run_summary (run_id, key, number, text)
SELECT u.run_id, u.key, u.number, u.text
FROM unnest($1::uuid[], $2::text[], $3::float8[], $4::text[]) AS u(run_id, key, number, text)
ON CONFLICT (run_id, key) DO UPDATE SET number = excluded.number, text = excluded.text;

-- name: put_facts
INSERT INTO run_facts (run_id, name, value)
SELECT u.run_id, u.name, u.value
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS u(run_id, name, value)
ON CONFLICT (run_id, name) DO UPDATE SET value = excluded.value;

-- name: put_datasets
INSERT INTO run_datasets (run_id, name, digest, context, source_type, source, schema, profile)
SELECT u.run_id, u.name, u.digest, u.context, u.source_type, u.source, u.schema, u.profile
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::text[])
    AS u(run_id, name, digest, context, source_type, source, schema, profile)
ON CONFLICT (run_id, name, digest, context) DO NOTHING;

-- name: count_refusals
-- Only when there are any: writers whose entries were refused, with the samples
-- to be added to those they have.
UPDATE writers w
SET rejected_entries = w.rejected_entries + u.entries,
    rejections = (
        SELECT jsonb_agg(kept.sample ORDER BY kept.place)
        FROM (
            SELECT sample, place
            FROM jsonb_array_elements(w.rejections || u.samples::jsonb)
                WITH ORDINALITY AS s(sample, place)
            ORDER BY place DESC
            LIMIT 16
        ) kept
    )
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[])
    AS u(run_id, writer_id, entries, samples)
WHERE w.run_id = u.run_id AND w.writer_id = u.writer_id;
