"""What the warehouse hands out: an evaluation, and an image that failed.

Not here: how they are stored (`warehouse.py`).
"""

from dataclasses import dataclass, field
from datetime import datetime

from visdiv_assets.quality.ratings import (
    NEARLY_ONE,
    Rated,
    Reading,
    is_many_times,
    meaning,
    rated,
    two_readings,
)


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
        estimator: version of the corrected score's estimator; scores of different ones are not
            compared. None if there was no corrected score, and in rows older than schema 4.
        sampling_unit: what it took for one piece of evidence: `near-duplicates`, `row`, `folder`
            or `column NAME`; None in rows older than schema 10, which took rows.
        n_units: effective number of sampling units. This and all up to `rke` are None in rows
            older than schema 10.
        other_score: corrected score with rows as sampling units, or with near-duplicates if the
            unit is `row`; None if there are too few.
        other_low: lower end of its 95 % interval.
        other_high: upper end.
        effective_rank_low: lower end of the 95 % interval of the corrected effective rank.
        effective_rank_high: upper end.
        participation_ratio_low: the same of the participation ratio.
        participation_ratio_high: upper end.
        spread: 1 − ‖mean‖², in [0, 1]: 0 if all images are one, 1 if they have nothing in common.
        vendi: Vendi score, in [1, D].
        rke: the same of order 2, in [1, `vendi`].
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
    estimator: int | None = None
    sampling_unit: str | None = None
    n_units: float | None = None
    other_score: float | None = None
    other_low: float | None = None
    other_high: float | None = None
    effective_rank_low: float | None = None
    effective_rank_high: float | None = None
    participation_ratio_low: float | None = None
    participation_ratio_high: float | None = None
    spread: float | None = None
    vendi: float | None = None
    rke: float | None = None

    @property
    def judged_score(self) -> float | None:
        """The score that the threshold applies to; None if there were too few images."""
        return self.diversity_score if self.basis == "plain" else self.corrected_score

    @property
    def corrected(self) -> Reading:
        """The corrected score with its interval."""
        return Reading(self.corrected_score, self.corrected_low, self.corrected_high)

    @property
    def rated(self) -> Rated:
        """Its rating, as it was given."""
        if self.n_units is None or self.spread is None or not self.stars:
            return Rated(self.rating, self.stars, self.stars, self.stars)
        return rated(self.corrected, self.n_units, self.spread, self.n_images)

    @property
    def meaning(self) -> str:
        """What the rating says of the images; empty if there is none."""
        if self.corrected_score is None or not self.stars:
            return ""
        return meaning(self.corrected_score, self.diversity_score, self.n_images)

    @property
    def two_readings(self) -> str:
        """A sentence where it matters what counts as one piece of evidence; else nothing."""
        if self.sampling_unit is None:
            return ""
        other = Reading(self.other_score, self.other_low, self.other_high)
        return two_readings(self.sampling_unit, self.corrected, other)

    def estimated_like(self, other: "Evaluation") -> bool:
        """Whether the corrected scores of both were estimated in the same way."""
        mine = self.estimator, self.sampling_unit
        return mine == (other.estimator, other.sampling_unit)

    @property
    def is_one_many_times(self) -> bool:
        """Whether few contents occur so often, or many so alike, that this is the finding."""
        from visdiv_assets.spectral.corrected import ENOUGH_UNITS  # SciPy takes a while to load

        if self.corrected_score is not None or self.n_units is None:
            return False
        alike = self.spread is not None and self.spread < NEARLY_ONE
        return is_many_times(self.n_images, self.n_units) or (
            alike and self.n_units >= ENOUGH_UNITS
        )

    @property
    def many_times_score(self) -> float | None:
        """What is judged of few images many times: their score as it is; None of other images."""
        return self.diversity_score if self.is_one_many_times else None

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
