"""What the warehouse hands out: an evaluation, and an image that failed.

Not here: how they are stored (`warehouse.py`), alerts (`alerts.py`).
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Evaluation:
    """One scoring of one dataset at one time: a row of the table `evaluations`.

    Attributes:
        evaluation_id: unique.
        dataset: its name.
        evaluated_at: aware datetime.
        run_id: Dagster's run, or None.
        model_id: of the embeddings.
        n_images: images embedded.
        n_failed: images that could not be read or decoded.
        dimension: D.
        effective_rank: in [0, D].
        participation_ratio: in [0, D].
        diversity_score: plain, in [0, 1].
        rating: name of the rating of the corrected score.
        stars: 1 to 5; 0 where too few images tell.
        manifest_fingerprint: of the manifest that was scored.
        seconds: from listing the images to the score.
        n_distinct: different contents among n_images; None in rows older than schema 2.
        corrected_score: corrected for the dataset's size, in [0, 1]; None where too few images
            tell, and in rows older than schema 4, as all that follows.
        corrected_low: lower end of its 95 % interval.
        corrected_high: upper end.
        corrected_effective_rank: in [1, D].
        corrected_participation_ratio: in [1, D].
        n_listed: images of the source; more than were looked at where a sample was scored.
        basis: which score is judged, `corrected` or `plain`.
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

    @property
    def judged_score(self) -> float | None:
        """The score that thresholds are for; None where too few images tell."""
        return self.diversity_score if self.basis == "plain" else self.corrected_score

    @property
    def where(self) -> tuple[str, str, str]:
        """Dataset, model id and manifest fingerprint: where the store keeps what was scored."""
        return self.dataset, self.model_id, self.manifest_fingerprint

    @property
    def is_sample(self) -> bool:
        """Whether only some of the images that were listed have been looked at."""
        return self.n_listed is not None and self.n_listed > self.n_images + self.n_failed


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be embedded.

    Attributes:
        image_id: its name in the dataset.
        reason: what is wrong with it.
        exception: class of what was raised; may be empty.
        bytes: size, encoded; None where that is not known.
    """

    image_id: str
    reason: str
    exception: str
    bytes: int | None
