-- One row per evaluation of a dataset, never overwritten, and its spectrum.

CREATE TABLE evaluations (
    evaluation_id       VARCHAR PRIMARY KEY,
    dataset             VARCHAR NOT NULL,
    evaluated_at        TIMESTAMPTZ NOT NULL,
    run_id              VARCHAR,                -- Dagster run; null if evaluated without Dagster
    model_id            VARCHAR NOT NULL,
    n_images            BIGINT NOT NULL,        -- images that were embedded, N in the formulas
    n_failed            BIGINT NOT NULL,        -- images that could not be read or decoded
    dimension           INTEGER NOT NULL,
    effective_rank      DOUBLE NOT NULL,
    participation_ratio DOUBLE NOT NULL,
    diversity_score     DOUBLE NOT NULL,
    rating              VARCHAR NOT NULL,
    stars               INTEGER NOT NULL,
    manifest_fingerprint VARCHAR NOT NULL,
    seconds             DOUBLE NOT NULL         -- from listing the images to the score
);

CREATE TABLE spectra (
    evaluation_id VARCHAR PRIMARY KEY,
    eigenvalues   DOUBLE[] NOT NULL             -- eigenvalues of the covariance, descending
);

CREATE VIEW latest_evaluations AS
SELECT * FROM evaluations
QUALIFY row_number() OVER (PARTITION BY dataset ORDER BY evaluated_at DESC, evaluation_id) = 1;
