-- Experiments, runs and what is said of them; searches; leases; compaction; purges.
--
-- Distribution (Citus): the run_* tables follow run_id. They repeat the run's
-- experiment_id, which never changes, so that searches find them by it.

ALTER TABLE workspaces
    ADD archived_at timestamptz,
    ADD request_id uuid UNIQUE;

ALTER TABLE experiments
    ADD description text NOT NULL DEFAULT '',
    ADD updated_at timestamptz NOT NULL DEFAULT now(),
    ADD deleted_at timestamptz,
    ADD request_id uuid;
CREATE UNIQUE INDEX experiments_by_request ON experiments (workspace_id, request_id)
    WHERE request_id IS NOT NULL;

CREATE TABLE experiment_tags (
    experiment_id bigint NOT NULL REFERENCES experiments,
    key text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    PRIMARY KEY (experiment_id, key)
);

ALTER TABLE runs
    ADD parent_run_id uuid,
    ADD started_at timestamptz NOT NULL DEFAULT now(),
    ADD deleted_at timestamptz,
    ADD purge_started_at timestamptz,
    ADD compacted_at timestamptz,           -- of a run that has ended; NULL: not yet
    ADD user_name text NOT NULL DEFAULT '',
    ADD host text NOT NULL DEFAULT '',
    ADD git_commit text NOT NULL DEFAULT '',
    ADD entry_point text NOT NULL DEFAULT '';
UPDATE runs SET started_at = created_at;

-- Ordered as searches return runs unless told otherwise.
CREATE INDEX runs_by_start ON runs (experiment_id, started_at DESC, run_id)
    WHERE purged_at IS NULL;
CREATE INDEX runs_by_parent ON runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
-- Work lists: they hold only runs that something is to be done with.
CREATE INDEX runs_to_purge ON runs (deleted_at)
    WHERE deleted_at IS NOT NULL AND purged_at IS NULL;
CREATE INDEX runs_to_compact ON runs (ended_at)
    WHERE ended_at IS NOT NULL AND compacted_at IS NULL AND purged_at IS NULL;

-- live: heard of within the lease. Neither index has a column that a heartbeat
-- changes, so heartbeats stay heap-only updates.
ALTER TABLE run_heartbeats
    ADD live boolean NOT NULL DEFAULT true,
    ADD refreshed_at timestamptz NOT NULL DEFAULT '-infinity';  -- of run_metrics
INSERT INTO run_heartbeats (run_id, heartbeat_at)
SELECT run_id, now() FROM runs WHERE state = 1
ON CONFLICT (run_id) DO NOTHING;
CREATE INDEX run_heartbeats_live ON run_heartbeats (run_id) WHERE live;

-- One row. Every sweep writes it: a gap tells that nobody could hear, and leases
-- begin anew from then.
CREATE TABLE sweeps (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    swept_at timestamptz NOT NULL,
    leases_from timestamptz NOT NULL
) WITH (fillfactor = 50);
INSERT INTO sweeps (swept_at, leases_from) VALUES (now(), now());

CREATE TABLE run_params (
    run_id uuid NOT NULL,
    experiment_id bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    PRIMARY KEY (run_id, key)
);
-- Key and value as one text (no key contains chr(31)), so that the planner's
-- statistics are of pairs: which values are common depends on the key. Of the value
-- its beginning: an index entry has its limit, a value does not share it.
CREATE INDEX run_params_by_value
    ON run_params (experiment_id, (key || chr(31) || left(value, 128)), run_id);
ALTER INDEX run_params_by_value ALTER COLUMN 2 SET STATISTICS 1000;

CREATE TABLE run_tags (
    run_id uuid NOT NULL,
    experiment_id bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    PRIMARY KEY (run_id, key)
);
CREATE INDEX run_tags_by_value
    ON run_tags (experiment_id, (key || chr(31) || left(value, 128)), run_id);
ALTER INDEX run_tags_by_value ALTER COLUMN 2 SET STATISTICS 1000;

CREATE TABLE run_summary (
    run_id uuid NOT NULL,
    key text COLLATE "C" NOT NULL,
    number float8,                          -- one of the two is set
    text text COLLATE "C",
    PRIMARY KEY (run_id, key)
);

CREATE TABLE run_facts (
    run_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (run_id, name)
);

-- Apart from runs: flushes write it, and must not wait for who locks a run's row.
CREATE TABLE run_notes (
    run_id uuid PRIMARY KEY,
    notes text NOT NULL
);

CREATE TABLE run_datasets (
    run_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    digest text COLLATE "C" NOT NULL,
    context text COLLATE "C" NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    source_type text NOT NULL,
    source text NOT NULL,
    schema text NOT NULL,
    profile text NOT NULL,
    PRIMARY KEY (run_id, name, digest, context)
);

-- What searches know of metrics: of the lowest rank of each key, copied from the
-- writers' summaries at a stated delay. Flushes never touch it, so it may be indexed.
CREATE TABLE run_metrics (
    run_id uuid NOT NULL,
    experiment_id bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    rank integer NOT NULL,
    point_count bigint NOT NULL,
    last_step bigint NOT NULL,
    last_time bigint NOT NULL,
    last_value float8 NOT NULL,
    min_value float8 NOT NULL,
    max_value float8 NOT NULL,
    PRIMARY KEY (run_id, key)
);
CREATE INDEX run_metrics_by_last ON run_metrics (experiment_id, key, last_value, run_id)
    WHERE last_value <> 'NaN';
CREATE INDEX run_metrics_by_min ON run_metrics (experiment_id, key, min_value, run_id)
    WHERE min_value <> 'NaN';
CREATE INDEX run_metrics_by_max ON run_metrics (experiment_id, key, max_value, run_id)
    WHERE max_value <> 'NaN';
-- Which keys there are depends on the experiment.
CREATE STATISTICS run_metrics_keys (dependencies) ON experiment_id, key FROM run_metrics;
CREATE STATISTICS run_params_keys (dependencies) ON experiment_id, key FROM run_params;
CREATE STATISTICS run_tags_keys (dependencies) ON experiment_id, key FROM run_tags;

-- settled: committed when a compactor last looked. compacted: chunks up to it may
-- have been merged, so a follower behind it cannot go on (FOLLOWER_LAGGED).
ALTER TABLE writers
    ADD rejected_entries bigint NOT NULL DEFAULT 0,
    ADD settled_sequence bigint NOT NULL DEFAULT 0,
    ADD compacted_sequence bigint NOT NULL DEFAULT 0;
