-- What the service remembers from tick to tick. Times are UTC, in ISO 8601.

CREATE TABLE notes (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- Datasets that are registered. Evaluations up to a number belong to an earlier registration.
CREATE TABLE registrations (
    dataset          TEXT PRIMARY KEY,
    registered_at    TEXT NOT NULL,
    after_evaluation INTEGER NOT NULL
);

-- Partitions in Dagster that this project has added; it takes away no others.
CREATE TABLE partitions (dataset TEXT PRIMARY KEY);

-- Datasets of which somebody said that they are meant to go.
CREATE TABLE removals (dataset TEXT PRIMARY KEY);

-- The newest evaluation of each dataset, as far as alerts need it.
CREATE TABLE newest (
    dataset      TEXT PRIMARY KEY,
    evaluated_at TEXT NOT NULL,
    score        REAL,                 -- the one that is judged
    rating       TEXT NOT NULL
);

CREATE TABLE conditions (
    dataset   TEXT NOT NULL,           -- empty: the settings file
    condition TEXT NOT NULL,
    active    INTEGER NOT NULL,
    since     TEXT NOT NULL,
    PRIMARY KEY (dataset, condition)
);

-- The outbox: every change of a condition that people are told of.
CREATE TABLE alerts (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    alert_id        TEXT NOT NULL UNIQUE,
    recorded_at     TEXT NOT NULL,     -- by this machine's clock; a week later it is given up
    created_at      TEXT NOT NULL,     -- when it was so, according to the evaluation
    dataset         TEXT NOT NULL,
    condition       TEXT NOT NULL,
    began           INTEGER NOT NULL,  -- 0: the condition ended
    reason          TEXT NOT NULL,
    diversity_score REAL,              -- the one that is judged
    previous_score  REAL,
    threshold       REAL,
    rating          TEXT,
    run_id          TEXT,
    basis           TEXT,
    plain_score     REAL,
    corrected_score REAL,
    corrected_low   REAL,
    corrected_high  REAL
);

-- One row for each address that alerts go to, known by a hash, since addresses hold secrets.
CREATE TABLE recipients (
    recipient       TEXT PRIMARY KEY,
    label           TEXT NOT NULL,
    attempts        INTEGER NOT NULL,  -- since the last success
    unanswered      INTEGER NOT NULL,  -- attempts in a row that were never answered
    next_attempt_at TEXT,
    claim           TEXT,              -- whoever is sending to it now
    claimed_at      TEXT,
    last_error      TEXT
);

CREATE TABLE deliveries (
    alert        INTEGER NOT NULL REFERENCES alerts (number),
    recipient    TEXT NOT NULL,
    attempts     INTEGER NOT NULL,
    delivered_at TEXT,                 -- when the service accepted it
    given_up_at  TEXT,                 -- when trying ended
    last_error   TEXT,
    PRIMARY KEY (alert, recipient)
);
CREATE INDEX waiting ON deliveries (recipient, alert)
    WHERE delivered_at IS NULL AND given_up_at IS NULL;

-- Sources whose images differ from those that were scored, or that cannot be looked at.
CREATE TABLE looks (
    dataset       TEXT PRIMARY KEY,
    source        TEXT NOT NULL,       -- hash of how its settings describe it
    fingerprint   TEXT,                -- as last seen, if it differs from what was scored
    since         REAL,                -- Unix time: first and last time that it was seen so
    seen_at       REAL,
    failing_since REAL,                -- Unix time of the first of the failures in a row
    failures      INTEGER NOT NULL,
    error         TEXT
);

-- Evaluations that were asked for because of a change, and have not come about yet.
CREATE TABLE requests (
    dataset     TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    requests    INTEGER NOT NULL,
    last_at     REAL NOT NULL          -- Unix time: last asked for, or last seen under way
);

-- Which night each dataset was asked for last; the empty name is the comparison of all datasets.
CREATE TABLE nights (
    dataset  TEXT PRIMARY KEY,
    night    TEXT NOT NULL,            -- local date on which it began
    requests INTEGER NOT NULL,
    last_at  REAL NOT NULL             -- Unix time
);
