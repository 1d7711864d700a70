"""The score: the published numbers, an independent calculation, and what must not change it."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.score import (
    RATINGS,
    DiversityCalculator,
    diversity,
    diversity_score,
    get_diversity_components,
    rate,
)
from visdiv_assets_tests.spectral.matrices import matrices, power_law, rotation, seeds

DATA = Path(__file__).parents[1] / "data"


def table(name):
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def independent(embeddings):
    """ER, PR and score in NumPy's own words; sharing no code with the package."""
    covariance = np.cov(embeddings.astype(np.float64), rowvar=False, ddof=1)
    values = np.clip(np.linalg.eigvalsh(np.atleast_2d(covariance)), 0, None)
    p = values / values.sum()
    er = np.exp(-sum(share * np.log(share) for share in p if share > 0))
    pr = values.sum() ** 2 / (values**2).sum()
    return er, pr, np.sqrt(er / len(p) * pr / len(p))


def measured(embeddings):
    return (*get_diversity_components(embeddings), DiversityCalculator().calculate(embeddings))


@pytest.mark.parametrize("row", table("finevision_table.csv"), ids=lambda row: row["dataset"])
def test_published_scores_follow_from_published_ranks(row):
    score = diversity_score(
        float(row["effective_rank"]),
        float(row["participation_ratio"]),
        int(row["embedding_dimension"]),
    )
    assert f"{score:.3f}" == row["diversity_score"]


def test_the_ratings_are_the_published_ones():
    published = [
        (float(row["score_from"]), int(row["stars"]), row["rating"], row["meaning"])
        for row in table("ratings.csv")
    ]
    assert [(r.score_from, r.stars, r.name, r.means) for r in RATINGS] == published


@pytest.mark.parametrize("rating", RATINGS, ids=lambda rating: rating.name)
def test_a_boundary_belongs_to_the_upper_rating(rating):
    assert rate(rating.score_from) == rating
    if rating.stars > 1:
        assert rate(np.nextafter(rating.score_from, 0)).stars == rating.stars - 1


@pytest.mark.parametrize("score", [-1e-9, 1.0000001, np.nan, np.inf])
def test_only_scores_between_0_and_1_have_a_rating(score):
    with pytest.raises(ValueError, match=re.escape("lies in [0, 1]")):
        rate(score)


@given(matrices())
def test_the_score_equals_an_independent_calculation(embeddings):
    assume(np.ptp(embeddings.astype(np.float64), axis=0).any())
    assert measured(embeddings) == pytest.approx(independent(embeddings), rel=1e-9)


def test_the_score_of_the_demo_photographs_equals_an_independent_calculation(demo):
    expected = independent(demo.rows)
    stored = demo.evaluation
    assert measured(demo.rows) == pytest.approx(expected, rel=1e-9)
    assert (
        stored.effective_rank,
        stored.participation_ratio,
        stored.diversity_score,
    ) == pytest.approx(expected, rel=1e-9)


@given(seeds, st.integers(2, 60), st.integers(2, 16))
def test_rotating_permuting_scaling_and_moving_change_nothing(seed, n, dimension):
    rng = np.random.default_rng(seed)
    embeddings = power_law(n, dimension, seed=seed)
    expected = pytest.approx(measured(embeddings), rel=1e-9)
    assert measured(embeddings @ rotation(dimension, seed)) == expected
    assert measured(embeddings[:, rng.permutation(dimension)]) == expected
    assert measured(embeddings * 10 ** rng.uniform(-50, 50)) == expected
    assert measured(embeddings + rng.uniform(-1e4, 1e4, dimension)) == expected
    assert measured(embeddings[rng.permutation(n)]) == expected


@given(matrices())
def test_every_image_twice_changes_nothing_but_the_degrees_of_freedom(embeddings):
    once = DiversityCalculator().measure(embeddings)
    twice = DiversityCalculator().measure(np.concatenate([embeddings, embeddings]))
    assert twice.score == pytest.approx(once.score, rel=1e-9)
    shrunk = once.spectrum * (2 * once.n - 2) / (2 * once.n - 1)
    np.testing.assert_allclose(twice.spectrum, shrunk, rtol=1e-9, atol=1e-9 * shrunk[0])


@given(matrices())
def test_a_score_lies_between_0_and_1_and_has_a_rating(embeddings):
    result = DiversityCalculator().measure(embeddings)
    assert 0 <= result.score <= 1
    assert result.rating in RATINGS


@given(
    seeds,
    st.integers(1, 40),
    st.sampled_from([2, 3, 7, 1_000, 20_000]),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_one_image_repeated_scores_exactly_0(seed, dimension, n, dtype):
    image = np.random.default_rng(seed).standard_normal(dimension).astype(dtype)
    embeddings = np.broadcast_to(image, (n, dimension))
    assert measured(embeddings) == (0.0, 0.0, 0.0)


@given(seeds, st.sampled_from([2, 300, 99_999, 8_388_607]))
def test_one_image_of_the_store_repeated_scores_exactly_0(seed, n):
    row = power_law(1, 512, seed=seed).astype(np.float16)
    result = diversity(Moments.of(row, np.array([n])))
    assert result.score == 0.0
    assert not result.spectrum.any()


def test_one_other_image_among_a_million_is_seen():
    rows = power_law(2, 512).astype(np.float16)
    result = diversity(Moments.of(rows, np.array([1_000_000, 1])))
    assert result.effective_rank == pytest.approx(1, abs=1e-6)
    assert result.score == pytest.approx(1 / 512, rel=1e-6)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.zeros((0, 512)), "at least 2 embeddings; got 0"),
        (np.zeros((1, 512)), "at least 2 embeddings; got 1"),
        (np.zeros((5, 511)), "dimension 512; got 511"),
        (np.zeros(512), "got 1 dimension(s)"),
        (np.zeros((2, 2, 512)), "got 3 dimension(s)"),
        (np.full((2, 512), np.nan), "NaN or infinity"),
        (np.full((2, 512), np.inf, np.float16), "NaN or infinity"),
        (np.zeros((2, 512), complex), "real numbers; got dtype complex128"),
        (np.full((2, 512), None), "real numbers; got dtype object"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_reason(embeddings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DiversityCalculator(dimension=512).calculate(embeddings)


def test_a_dimension_must_be_positive():
    with pytest.raises(ValueError, match="dimension must be positive; got 0"):
        diversity_score(1.0, 1.0, 0)
