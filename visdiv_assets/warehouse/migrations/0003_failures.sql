-- The images of each dataset that could not be embedded in its last evaluation.

CREATE TABLE failures (
    dataset   VARCHAR NOT NULL,
    image_id  VARCHAR NOT NULL,
    reason    VARCHAR NOT NULL,
    exception VARCHAR NOT NULL,                 -- class of the exception; may be empty
    bytes     BIGINT,                           -- encoded size; null if unknown
    failed_at TIMESTAMPTZ NOT NULL,             -- time of the last failure
    model_id  VARCHAR NOT NULL
);
