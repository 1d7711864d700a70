-- The score corrected for the size of the dataset, with its 95 % interval, and what it is judged by.

ALTER TABLE evaluations ADD COLUMN corrected_score DOUBLE;      -- NULL where too few images tell
ALTER TABLE evaluations ADD COLUMN corrected_low DOUBLE;
ALTER TABLE evaluations ADD COLUMN corrected_high DOUBLE;
ALTER TABLE evaluations ADD COLUMN corrected_effective_rank DOUBLE;
ALTER TABLE evaluations ADD COLUMN corrected_participation_ratio DOUBLE;
ALTER TABLE evaluations ADD COLUMN n_listed BIGINT;             -- more than n_images: a sample
ALTER TABLE evaluations ADD COLUMN basis VARCHAR DEFAULT 'plain';  -- which score was judged

CREATE OR REPLACE VIEW latest_evaluations AS
SELECT * FROM evaluations
QUALIFY row_number() OVER (PARTITION BY dataset ORDER BY evaluated_at DESC, evaluation_id) = 1;

-- The evaluation that each dataset's drift is measured from, where one was pinned.
CREATE TABLE baselines (
    dataset       VARCHAR PRIMARY KEY,
    evaluation_id VARCHAR NOT NULL,
    pinned_at     TIMESTAMPTZ NOT NULL
);
