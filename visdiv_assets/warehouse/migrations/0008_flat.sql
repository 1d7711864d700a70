-- How many pictures show nothing: one flat colour.

ALTER TABLE evaluations ADD COLUMN n_flat BIGINT;  -- NULL: not known, in older rows

CREATE OR REPLACE VIEW latest_evaluations AS
SELECT * FROM evaluations
QUALIFY row_number() OVER (PARTITION BY dataset ORDER BY evaluated_at DESC, evaluation_id) = 1;
