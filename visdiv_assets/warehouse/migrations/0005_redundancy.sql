-- The latest findings on duplicates in each dataset, and on its images that appear in benchmarks.

-- One row per image of a cluster: near-duplicates, or several images with the same content.
CREATE TABLE duplicates (
    dataset     VARCHAR NOT NULL,
    cluster     BIGINT NOT NULL,                -- from 1; clusters with the most contents first
    image_id    VARCHAR NOT NULL,
    kind        VARCHAR,                        -- exact: bytes of an earlier image; near; null: kept
    keep        BOOLEAN NOT NULL,               -- whether to keep the image; the others are redundant
    medoid      BOOLEAN NOT NULL,               -- the image most similar to all others
    similarity_to_kept   FLOAT NOT NULL,
    similarity_to_medoid FLOAT NOT NULL,
    width       INTEGER,                        -- null if it was not needed for a decision
    height      INTEGER,
    bytes       BIGINT,
    content_key VARCHAR NOT NULL                -- hex
);

CREATE TABLE redundancy (
    dataset              VARCHAR NOT NULL,
    found_at             TIMESTAMPTZ NOT NULL,
    model_id             VARCHAR NOT NULL,
    manifest_fingerprint VARCHAR NOT NULL,
    threshold            DOUBLE NOT NULL,       -- cosine similarity
    split                BOOLEAN NOT NULL,      -- whether all images reach it with the one kept
    n_images             BIGINT NOT NULL,
    n_distinct           BIGINT NOT NULL,       -- distinct contents among them
    n_near               BIGINT NOT NULL,       -- redundant contents
    n_clusters           BIGINT NOT NULL,       -- clusters of near-duplicates
    rate                 DOUBLE NOT NULL,       -- share of redundant images, including exact copies
    rate_090             DOUBLE NOT NULL,       -- the same at threshold 0.90
    rate_095             DOUBLE NOT NULL,       -- the same at threshold 0.95
    smallest_similarity  DOUBLE,                -- of two images in a cluster; null without clusters
    score                DOUBLE NOT NULL,       -- plain score
    score_without        DOUBLE,                -- without duplicates; null if one image is left
    corrected_score      DOUBLE,                -- null: too few images
    corrected_without    DOUBLE,
    method               VARCHAR NOT NULL,      -- exact or index
    recall               DOUBLE                 -- share of pairs found; measured if not exact
);

-- One row per image and benchmark that it appears in, with the most similar benchmark image.
CREATE TABLE leaks (
    dataset            VARCHAR NOT NULL,
    benchmark          VARCHAR NOT NULL,
    image_id           VARCHAR NOT NULL,
    benchmark_image_id VARCHAR NOT NULL,
    similarity         FLOAT NOT NULL,
    exact              BOOLEAN NOT NULL         -- whether the bytes are equal
);

CREATE TABLE leakage (
    dataset              VARCHAR NOT NULL,
    benchmark            VARCHAR NOT NULL,
    found_at             TIMESTAMPTZ NOT NULL,
    not_compared         VARCHAR,               -- the reason; all following columns are null then
    model_id             VARCHAR,
    threshold            DOUBLE,
    n_images             BIGINT,
    n_leaked             BIGINT,                -- of n_images, those in the benchmark
    n_exact              BIGINT,                -- of n_leaked, those with equal bytes
    n_benchmark_images   BIGINT,
    n_benchmark_seen     BIGINT,                -- of n_benchmark_images, those in the dataset
    method               VARCHAR,
    recall               DOUBLE
);
