-- Artifacts: which content stands at which path of which run, and where it is.
--
-- Distribution (Citus): artifacts, uploads and upload_parts belong to a run and
-- follow run_id; blobs belong to an experiment and follow experiment_id, which is
-- in their key; blob_deletions follows object_key. No foreign keys between them.

-- What is visible. A row appears in the transaction that ends its upload.
CREATE TABLE artifacts (
    run_id uuid NOT NULL,
    path text COLLATE "C" NOT NULL,
    experiment_id bigint NOT NULL,      -- with digest and size: the blob
    digest bytea NOT NULL,              -- SHA-256 tree, see artifact_service.proto
    size bigint NOT NULL,               -- bytes
    content_type text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, path)
);

-- Stored content, once per experiment. reference_count is the number of rows of
-- artifacts that name it; the row goes when it falls to zero, and its object
-- then stands in blob_deletions.
CREATE TABLE blobs (
    experiment_id bigint NOT NULL,
    digest bytea NOT NULL,
    size bigint NOT NULL,
    object_key text COLLATE "C" NOT NULL,
    part_sha256s bytea NOT NULL,        -- 32 bytes a part
    reference_count bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (experiment_id, digest, size)
);
CREATE INDEX blobs_by_object_key ON blobs (object_key);

-- Uploads under way. The row precedes the first byte and protects its key: an
-- object whose key stands neither here nor in blobs can never become visible.
CREATE TABLE uploads (
    run_id uuid NOT NULL,
    upload_id uuid NOT NULL,
    path text COLLATE "C" NOT NULL,
    experiment_id bigint NOT NULL,
    digest bytea NOT NULL,
    size bigint NOT NULL,
    content_type text NOT NULL,
    part_sha256s bytea NOT NULL,
    object_key text COLLATE "C" NOT NULL,
    resumable boolean NOT NULL,         -- in parts; otherwise one PUT by one call
    s3_upload_id text,                  -- NULL until S3 has named the multipart upload
    created_at timestamptz NOT NULL DEFAULT now(),
    progressed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, upload_id)
);
-- Equal requests find the same upload, also at the same time.
CREATE UNIQUE INDEX uploads_by_content ON uploads (run_id, path, digest, size, content_type)
    WHERE resumable;
CREATE INDEX uploads_by_progress ON uploads (progressed_at);
CREATE INDEX uploads_by_object_key ON uploads (object_key);

CREATE TABLE upload_parts (
    run_id uuid NOT NULL,
    upload_id uuid NOT NULL,
    part_number integer NOT NULL,
    etag text NOT NULL,
    PRIMARY KEY (run_id, upload_id, part_number)
);

-- Objects to delete from S3, and multipart uploads to abort. Filled by the
-- transaction that made them useless, emptied after S3 confirmed.
CREATE TABLE blob_deletions (
    object_key text COLLATE "C" PRIMARY KEY,
    s3_upload_id text,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One row: what this database's keys begin with, so that databases that share a
-- bucket cannot take each other's objects for orphans.
CREATE TABLE artifact_namespace (
    namespace text PRIMARY KEY
);
INSERT INTO artifact_namespace (namespace) VALUES (substr(replace(gen_random_uuid()::text, '-', ''), 1, 12));
