-- The conditions of each dataset, the outbox of alerts, and their delivery to each target.

CREATE TABLE conditions (
    dataset   VARCHAR NOT NULL,
    condition VARCHAR NOT NULL,
    active    BOOLEAN NOT NULL,
    since     TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (dataset, condition)
);

CREATE TABLE alerts (
    alert_id        VARCHAR PRIMARY KEY,
    created_at      TIMESTAMPTZ NOT NULL,
    dataset         VARCHAR NOT NULL,
    condition       VARCHAR NOT NULL,
    began           BOOLEAN NOT NULL,           -- false: the condition ended
    reason          VARCHAR NOT NULL,
    diversity_score DOUBLE,
    previous_score  DOUBLE,
    threshold       DOUBLE,
    rating          VARCHAR,
    run_id          VARCHAR
);

-- One row per alert and target. Targets are stored as hashes, since their URLs may contain secrets.
CREATE TABLE deliveries (
    alert_id        VARCHAR NOT NULL,
    target          VARCHAR NOT NULL,
    attempts        INTEGER NOT NULL,
    next_attempt_at TIMESTAMPTZ NOT NULL,
    delivered_at    TIMESTAMPTZ,                -- when the service accepted it
    last_error      VARCHAR,
    PRIMARY KEY (alert_id, target)
);

ALTER TABLE evaluations ADD COLUMN n_distinct BIGINT;   -- distinct contents among n_images

CREATE OR REPLACE VIEW latest_evaluations AS
SELECT * FROM evaluations
QUALIFY row_number() OVER (PARTITION BY dataset ORDER BY evaluated_at DESC, evaluation_id) = 1;
