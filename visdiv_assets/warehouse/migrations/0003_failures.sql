-- The images of each dataset that could not be embedded when it was looked at last.

CREATE TABLE failures (
    dataset   VARCHAR NOT NULL,
    image_id  VARCHAR NOT NULL,
    reason    VARCHAR NOT NULL,
    exception VARCHAR NOT NULL,                 -- class of what was raised; may be empty
    bytes     BIGINT,                           -- size of the encoded image, where known
    failed_at TIMESTAMPTZ NOT NULL,             -- when it was found to fail, the last time
    model_id  VARCHAR NOT NULL
);
