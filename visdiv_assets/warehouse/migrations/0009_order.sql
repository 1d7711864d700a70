-- The order in which evaluations were recorded, whatever the clock said, and what they were judged by.

ALTER TABLE evaluations ADD COLUMN threshold DOUBLE;    -- NULL: no alerts; also in older rows
ALTER TABLE evaluations ADD COLUMN number BIGINT;       -- from 1, in the order of recording
UPDATE evaluations SET number = place.number
FROM (SELECT evaluation_id, row_number() OVER (ORDER BY rowid) AS number FROM evaluations) AS place
WHERE evaluations.evaluation_id = place.evaluation_id;

CREATE OR REPLACE VIEW latest_evaluations AS
SELECT * FROM evaluations
QUALIFY row_number() OVER (PARTITION BY dataset ORDER BY number DESC) = 1;
