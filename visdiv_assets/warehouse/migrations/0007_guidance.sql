-- What dominates each dataset, and what would make it more diverse, as found last.

CREATE TABLE bias_axes (
    dataset        VARCHAR NOT NULL,
    axis           INTEGER NOT NULL,             -- 1 for the one with the largest variance
    share          DOUBLE NOT NULL,              -- of all variance
    side           VARCHAR NOT NULL,             -- A or B
    side_likeness  DOUBLE,                       -- mean cosine of the images named here
    side_share     DOUBLE NOT NULL,              -- of all different images, those on this side
    rank           INTEGER NOT NULL,             -- 1 for the image farthest out
    image_id       VARCHAR NOT NULL,
    position       DOUBLE NOT NULL,              -- standard deviations from the mean
    between_slices DOUBLE NOT NULL,              -- share of the axis that slices explain
    slice          VARCHAR,                      -- that lies at this side, where slices explain it
    shared         DOUBLE NOT NULL,              -- what all images of the dataset have in common
    model_id       VARCHAR NOT NULL,
    measured_at    TIMESTAMPTZ NOT NULL
);

CREATE TABLE augmentation_effects (
    dataset      VARCHAR NOT NULL,
    augmentation VARCHAR NOT NULL,
    change       DOUBLE,                         -- of the corrected score, relative; NULL: too few
    change_low   DOUBLE,                         -- of its 95 % interval
    change_high  DOUBLE,
    p_value      DOUBLE,
    similarity   DOUBLE NOT NULL,                -- mean cosine of an image and its copy
    verdict      VARCHAR NOT NULL,
    n_images     BIGINT NOT NULL,                -- that it was tried on
    model_id     VARCHAR NOT NULL,
    measured_at  TIMESTAMPTZ NOT NULL
);

CREATE TABLE acquisitions (
    dataset         VARCHAR NOT NULL,
    other           VARCHAR NOT NULL,            -- the dataset that would be added
    share           DOUBLE NOT NULL,             -- of the other in the most diverse mixture
    n_images        BIGINT NOT NULL,             -- of the other, beside all of the dataset
    gain            DOUBLE,                      -- of the corrected score, relative; NULL: too few
    corrected_score DOUBLE,                      -- of the mixture
    corrected_low   DOUBLE,
    corrected_high  DOUBLE,
    sure            BOOLEAN NOT NULL,            -- whether the gain is more than chance
    model_id        VARCHAR NOT NULL,
    measured_at     TIMESTAMPTZ NOT NULL
);
