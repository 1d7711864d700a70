-- The latest core-set of each dataset.

CREATE TABLE core_sets (
    dataset     VARCHAR NOT NULL,
    rank        INTEGER NOT NULL,               -- order of choice, from 1
    image_id    VARCHAR NOT NULL,
    method      VARCHAR NOT NULL,
    selected_at TIMESTAMPTZ NOT NULL,
    model_id    VARCHAR NOT NULL
);
