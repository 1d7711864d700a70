-- The score corrected for the size of the dataset, its 95 % interval, and which score is judged.

ALTER TABLE evaluations ADD COLUMN corrected_score DOUBLE;      -- NULL: too few images
ALTER TABLE evaluations ADD COLUMN corrected_low DOUBLE;
ALTER TABLE evaluations ADD COLUMN corrected_high DOUBLE;
ALTER TABLE evaluations ADD COLUMN corrected_effective_rank DOUBLE;
ALTER TABLE evaluations ADD COLUMN corrected_participation_ratio DOUBLE;
ALTER TABLE evaluations ADD COLUMN n_listed BIGINT;             -- images in the source
ALTER TABLE evaluations ADD COLUMN basis VARCHAR DEFAULT 'plain';  -- the score that the threshold applies to

CREATE OR REPLACE VIEW latest_evaluations AS
SELECT * FROM evaluations
QUALIFY row_number() OVER (PARTITION BY dataset ORDER BY evaluated_at DESC, evaluation_id) = 1;

-- The pinned evaluation from which a dataset's drift is measured.
CREATE TABLE baselines (
    dataset       VARCHAR PRIMARY KEY,
    evaluation_id VARCHAR NOT NULL,
    pinned_at     TIMESTAMPTZ NOT NULL
);
