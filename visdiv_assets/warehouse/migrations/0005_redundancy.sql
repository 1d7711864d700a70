-- What each dataset holds more than once, and what of it appears in benchmarks, as found last.

-- A row for each image of a cluster: near-duplicates, or several images of one content.
CREATE TABLE duplicates (
    dataset     VARCHAR NOT NULL,
    cluster     BIGINT NOT NULL,                -- from 1, the cluster of the most contents first
    image_id    VARCHAR NOT NULL,
    kind        VARCHAR,                        -- exact: bytes of one named before; near; null: kept
    keep        BOOLEAN NOT NULL,               -- the one to keep; all others of its cluster may go
    medoid      BOOLEAN NOT NULL,               -- the one most like all others
    similarity_to_kept   FLOAT NOT NULL,
    similarity_to_medoid FLOAT NOT NULL,
    width       INTEGER,                        -- null where nothing was decided by it
    height      INTEGER,
    bytes       BIGINT,
    content_key VARCHAR NOT NULL                -- in hex
);

CREATE TABLE redundancy (
    dataset              VARCHAR NOT NULL,
    found_at             TIMESTAMPTZ NOT NULL,
    model_id             VARCHAR NOT NULL,
    manifest_fingerprint VARCHAR NOT NULL,
    threshold            DOUBLE NOT NULL,       -- cosine similarity
    split                BOOLEAN NOT NULL,      -- every image is that similar to the one kept for it
    n_images             BIGINT NOT NULL,
    n_distinct           BIGINT NOT NULL,       -- different contents among them
    n_near               BIGINT NOT NULL,       -- contents that may go
    n_clusters           BIGINT NOT NULL,       -- of near-duplicates
    rate                 DOUBLE NOT NULL,       -- share of images that may go, exact copies too
    rate_090             DOUBLE NOT NULL,       -- the same at 0.90
    rate_095             DOUBLE NOT NULL,       -- and at 0.95
    smallest_similarity  DOUBLE,                -- of two images of one cluster; null without any
    score                DOUBLE NOT NULL,       -- plain
    score_without        DOUBLE,                -- without duplicates; null where one image is left
    corrected_score      DOUBLE,                -- null where too few images tell
    corrected_without    DOUBLE,
    method               VARCHAR NOT NULL,      -- exact, or index
    recall               DOUBLE                 -- share of pairs found; measured where not exact
);

-- A row for each image and benchmark that it appears in: the image there that is most like it.
CREATE TABLE leaks (
    dataset            VARCHAR NOT NULL,
    benchmark          VARCHAR NOT NULL,
    image_id           VARCHAR NOT NULL,
    benchmark_image_id VARCHAR NOT NULL,
    similarity         FLOAT NOT NULL,
    exact              BOOLEAN NOT NULL         -- the same bytes
);

CREATE TABLE leakage (
    dataset              VARCHAR NOT NULL,
    benchmark            VARCHAR NOT NULL,
    found_at             TIMESTAMPTZ NOT NULL,
    not_compared         VARCHAR,               -- why; then all that follows is null
    model_id             VARCHAR,
    threshold            DOUBLE,
    n_images             BIGINT,
    n_leaked             BIGINT,                -- of these, those that are in the benchmark
    n_exact              BIGINT,                -- of these, those with the same bytes
    n_benchmark_images   BIGINT,
    n_benchmark_seen     BIGINT,                -- of these, those that are in the dataset
    method               VARCHAR,
    recall               DOUBLE
);
