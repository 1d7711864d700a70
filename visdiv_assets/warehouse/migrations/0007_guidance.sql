-- The latest findings on what dominates each dataset and what would make it more diverse.

CREATE TABLE bias_axes (
    dataset        VARCHAR NOT NULL,
    axis           INTEGER NOT NULL,             -- 1 for the axis with the largest variance
    share          DOUBLE NOT NULL,              -- share of all variance
    side           VARCHAR NOT NULL,             -- A or B
    side_likeness  DOUBLE,                       -- mean cosine similarity of the images listed here
    side_share     DOUBLE NOT NULL,              -- share of all distinct images on this side
    rank           INTEGER NOT NULL,             -- 1 for the outermost image
    image_id       VARCHAR NOT NULL,
    position       DOUBLE NOT NULL,              -- standard deviations from the mean
    between_slices DOUBLE NOT NULL,              -- share of the axis that slices explain
    slice          VARCHAR,                      -- slice at this side, if slices explain the axis
    shared         DOUBLE NOT NULL,              -- how much all images have in common
    model_id       VARCHAR NOT NULL,
    measured_at    TIMESTAMPTZ NOT NULL
);

CREATE TABLE augmentation_effects (
    dataset      VARCHAR NOT NULL,
    augmentation VARCHAR NOT NULL,
    change       DOUBLE,                         -- relative, of the corrected score; NULL: too few
    change_low   DOUBLE,                         -- lower end of the 95 % interval
    change_high  DOUBLE,
    p_value      DOUBLE,
    similarity   DOUBLE NOT NULL,                -- mean cosine similarity of image and copy
    verdict      VARCHAR NOT NULL,
    n_images     BIGINT NOT NULL,                -- images that were augmented
    model_id     VARCHAR NOT NULL,
    measured_at  TIMESTAMPTZ NOT NULL
);

CREATE TABLE acquisitions (
    dataset         VARCHAR NOT NULL,
    other           VARCHAR NOT NULL,            -- the dataset that would be added
    share           DOUBLE NOT NULL,             -- of `other` in the most diverse mixture
    n_images        BIGINT NOT NULL,             -- images of `other` to add to the dataset
    gain            DOUBLE,                      -- relative, of the corrected score; NULL: too few
    corrected_score DOUBLE,                      -- of the mixture
    corrected_low   DOUBLE,
    corrected_high  DOUBLE,
    sure            BOOLEAN NOT NULL,            -- whether the gain is more than chance
    model_id        VARCHAR NOT NULL,
    measured_at     TIMESTAMPTZ NOT NULL
);
