-- What counted as one piece of evidence, what the other reading says, and how alike all images are.

ALTER TABLE evaluations ADD COLUMN estimator INTEGER;       -- version of the corrected score's estimator
UPDATE evaluations SET estimator = 1 WHERE corrected_score IS NOT NULL;
ALTER TABLE evaluations ADD COLUMN sampling_unit VARCHAR;   -- near-duplicates, row, folder, column NAME; NULL: row
ALTER TABLE evaluations ADD COLUMN n_units DOUBLE;          -- effective number of sampling units
ALTER TABLE evaluations ADD COLUMN other_score DOUBLE;        -- the corrected score with rows as units; of near-duplicates, if rows are the unit
ALTER TABLE evaluations ADD COLUMN other_low DOUBLE;          -- its 95 % interval
ALTER TABLE evaluations ADD COLUMN other_high DOUBLE;
ALTER TABLE evaluations ADD COLUMN effective_rank_low DOUBLE;           -- 95 % intervals of the corrected
ALTER TABLE evaluations ADD COLUMN effective_rank_high DOUBLE;          -- ER and PR
ALTER TABLE evaluations ADD COLUMN participation_ratio_low DOUBLE;
ALTER TABLE evaluations ADD COLUMN participation_ratio_high DOUBLE;
ALTER TABLE evaluations ADD COLUMN spread DOUBLE;           -- 1 - |mean|^2: 0 if all images are one
ALTER TABLE evaluations ADD COLUMN vendi DOUBLE;            -- Vendi score (order 1), cosine kernel
ALTER TABLE evaluations ADD COLUMN rke DOUBLE;              -- the same of order 2

CREATE OR REPLACE VIEW latest_evaluations AS
SELECT * FROM evaluations
QUALIFY row_number() OVER (PARTITION BY dataset ORDER BY number DESC) = 1;
