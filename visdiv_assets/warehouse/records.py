"""What the warehouse hands out: an evaluation, and an image that failed.

Not here: how they are stored (`warehouse.py`).
"""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class Evaluation:
    """One scoring of one dataset at one time: a row of the table `evaluations`.

    Attributes:
        evaluation_id: unique.
        dataset: its name.
        evaluated_at: aware datetime.
        run_id: Dagster run, or None.
        model_id: model id of the embeddings.
        n_images: images that were embedded.
        n_failed: images that could not be read or decoded.
        dimension: D.
        effective_rank: in [0, D].
        participation_ratio: in [0, D].
        diversity_score: plain score, in [0, 1].
        rating: name of the corrected score's rating.
        stars: 1 to 5; 0 if there were too few images.
        manifest_fingerprint: fingerprint of the manifest that was scored.
        seconds: time from listing the images to the score.
        n_distinct: distinct contents among n_images; None in rows older than schema 2.
        corrected_score: score corrected for the dataset's size, in [0, 1]. This and all following
            attributes are None if there were too few images, and in rows older than schema 4.
        corrected_low: lower end of the 95 % interval.
        corrected_high: upper end.
        corrected_effective_rank: in [1, D].
        corrected_participation_ratio: in [1, D].
        n_listed: images in the source; larger than n_images + n_failed if a sample was scored.
        basis: which score the threshold applies to, `corrected` or `plain`.
        n_flat: embedded images whose pictures are one flat colour; None in rows older than
            schema 8.
        threshold: score below which an alert is due; None if there are no alerts for it.
        number: its place in the order of recording, from 1; None until it is recorded.
    """

    evaluation_id: str
    dataset: str
    evaluated_at: datetime
    run_id: str | None
    model_id: str
    n_images: int
    n_failed: int
    dimension: int
    effective_rank: float
    participation_ratio: float
    diversity_score: float
    rating: str
    stars: int
    manifest_fingerprint: str
    seconds: float
    n_distinct: int | None = None
    corrected_score: float | None = None
    corrected_low: float | None = None
    corrected_high: float | None = None
    corrected_effective_rank: float | None = None
    corrected_participation_ratio: float | None = None
    n_listed: int | None = None
    basis: str = "plain"
    n_flat: int | None = None
    threshold: float | None = None
    number: int | None = field(default=None, compare=False)

    @property
    def judged_score(self) -> float | None:
        """The score that the threshold applies to; None if there were too few images."""
        return self.diversity_score if self.basis == "plain" else self.corrected_score

    @property
    def where(self) -> tuple[str, str, str]:
        """Dataset, model id and manifest fingerprint: where the store keeps what was scored."""
        return self.dataset, self.model_id, self.manifest_fingerprint

    @property
    def is_sample(self) -> bool:
        """Whether only some of the listed images were read."""
        return self.n_listed is not None and self.n_listed > self.n_images + self.n_failed


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be embedded.

    Attributes:
        image_id: its name in the dataset.
        reason: what is wrong with it.
        exception: class of the exception; may be empty.
        bytes: encoded size; None if unknown.
    """

    image_id: str
    reason: str
    exception: str
    bytes: int | None
