"""Effects of augmentations: the truth where it is known, and what is made of them."""

import math

import numpy as np
import pytest

from visdiv_assets.guidance.augmentation import (
    ENOUGH_IMAGES,
    Effect,
    advise,
    augmentation_effect,
    more_than_chance,
    verdict,
)

D = 32
SPREAD = np.arange(1.0, D + 1) ** -0.25
RNG = np.random.default_rng


def drawn(seed, n=200):
    return RNG(seed).standard_normal((n, D)) * SPREAD


def effect(p_value=0.001, change=0.1, similarity=0.5):
    return Effect(change, change - 0.05, change + 0.05, p_value, similarity, 200)


# --- known truth ---


def test_copies_that_are_the_images_change_nothing_and_that_is_sure():
    found = augmentation_effect(drawn(0), drawn(0))
    assert (found.change, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert found.similarity == pytest.approx(1)


def covers(make, truth, seeds=10):
    """How many of the intervals hold the truth, and the mean of what was measured."""
    effects = [
        augmentation_effect(x, make(x, seed)) for seed in range(seeds) for x in [drawn(seed)]
    ]
    held = sum(each.low <= truth <= each.high for each in effects)
    return held, float(np.mean([each.change for each in effects]))


def score(covariance):
    p = np.linalg.eigvalsh(covariance)
    p = np.maximum(p / p.sum(), 1e-15)
    return math.sqrt(math.exp(-p @ np.log(p)) / (p @ p))


@pytest.mark.slow
def test_copies_that_are_other_images_of_the_same_kind_change_nothing():
    held, mean = covers(lambda x, seed: drawn(seed + 1000), 0)
    assert held >= 8
    assert abs(mean) < 0.025


@pytest.mark.slow
def test_copies_that_are_partly_other_images_change_nothing():
    held, mean = covers(lambda x, seed: 0.9 * x + math.sqrt(0.19) * drawn(seed + 1000), 0)
    assert held >= 8
    assert abs(mean) < 0.02


def test_new_directions_add_and_that_is_more_than_chance():
    found = augmentation_effect(drawn(0), drawn(0) + RNG(1).standard_normal((200, D)))
    assert 0 < found.low < found.change < found.high
    assert found.p_value < 0.001


@pytest.mark.slow
def test_new_directions_add_as_much_as_they_should():
    truth = score(np.diag(SPREAD**2) + 0.05 * np.eye(D)) / score(np.diag(SPREAD**2)) - 1
    held, mean = covers(
        lambda x, seed: x + math.sqrt(0.1) * RNG(seed + 1000).standard_normal(x.shape), truth
    )
    assert held >= 8
    assert mean == pytest.approx(truth, abs=0.15 * truth)


@pytest.mark.slow
def test_copies_in_fewer_directions_take_away_as_much_as_they_should():
    few = np.where(np.arange(D) < 4, 1.0, 0.3)
    both = (np.diag(SPREAD**2) + np.diag(few * SPREAD) ** 2) / 2
    cross = score(both) / score(np.diag(SPREAD**2)) - 1
    held, mean = covers(lambda x, seed: x * few, cross)
    assert cross < -0.03
    assert held >= 8
    assert mean == pytest.approx(cross, abs=0.02)


@pytest.mark.slow
def test_images_that_are_blended_with_each_other_are_no_independent_evidence():
    # The mean of two has the same spectrum as one, on a smaller scale: nothing is added.
    changes, held = [], 0
    for seed in range(8):
        x = drawn(seed, 240)
        y = (x + x.reshape(-1, 2, D)[:, ::-1].reshape(x.shape)) / 2
        found = augmentation_effect(x, y, np.arange(240) // 2)
        changes.append(found.change)
        held += found.low <= 0 <= found.high
    assert held >= 6
    assert abs(np.mean(changes)) < 0.02


def test_the_same_images_give_the_same_figures():
    x, y = drawn(0, 60), drawn(1, 60)
    assert augmentation_effect(x, y) == augmentation_effect(x, y)


# --- limits ---


def test_similarity_is_the_mean_cosine_whatever_the_lengths():
    x = drawn(0, 60)
    assert augmentation_effect(x, -3 * x).similarity == pytest.approx(-1)


@pytest.mark.parametrize(("n", "told"), [(ENOUGH_IMAGES - 1, False), (ENOUGH_IMAGES, True)])
def test_too_few_images_give_no_change_but_a_similarity(n, told):
    found = augmentation_effect(drawn(0, n), drawn(1, n))
    assert math.isnan(found.change) is not told
    assert -1 <= found.similarity <= 1


def test_no_images_and_equal_images_tell_nothing():
    assert math.isnan(augmentation_effect(np.ones((80, 4)), np.ones((80, 4))).change)


@pytest.mark.parametrize(
    ("x", "y", "groups", "reason"),
    [
        (np.ones((60, 4)), np.ones((59, 4)), None, "each image needs exactly one copy"),
        (np.ones((60, 4)), np.ones((60, 3)), None, "each image needs exactly one copy"),
        (np.full((60, 4), np.nan), np.ones((60, 4)), None, "NaN"),
        (np.ones(60), np.ones(60), None, "must be a matrix"),
        (np.ones((60, 4)), np.ones((60, 4)), np.arange(59), "groups must have shape"),
    ],
)
def test_matrices_that_do_not_fit_are_an_error(x, y, groups, reason):
    with pytest.raises(ValueError, match=reason):
        augmentation_effect(x, y, groups)


# --- verdicts ---


def test_with_many_augmentations_one_must_be_surer_to_count():
    weak = {f"{at}": effect(0.03) for at in range(20)}
    assert more_than_chance(weak) == set()
    assert more_than_chance({"one": effect(0.03)}) == {"one"}
    assert more_than_chance({**weak, "strong": effect(0.0001)}) == {"strong"}
    assert more_than_chance({"few": effect(math.nan), "one": effect(0.03)}) == {"one"}


@pytest.mark.parametrize(
    ("found", "sure", "word"),
    [
        (effect(change=0.1), True, "adds"),
        (effect(change=-0.1), True, "takes away"),
        (effect(), False, "may be chance"),
        (effect(similarity=0.96), True, "hardly seen"),
        (effect(change=math.nan, similarity=0.96), False, "too few to tell"),
    ],
)
def test_a_verdict_says_what_the_figures_come_to(found, sure, word):
    assert verdict(found, sure=sure) == word


def test_advice_names_every_augmentation_once_the_best_first():
    effects = {
        "crop": effect(change=0.05),
        "mixup": effect(change=0.2),
        "grey": effect(change=-0.1),
        "jpeg": effect(similarity=0.99, change=0.001),
        "noise": effect(0.5),
    }
    said = advise(effects)
    assert said[0].endswith("mixup (+20 %), crop (+5 %).")
    assert "noise" in said[1]
    assert "less diverse" in said[2]
    assert "grey (-10 %)" in said[2]
    assert said[3].startswith("SSCD hardly tells these copies from the originals")
    assert "jpeg" in said[3]
    assert advise({}) == []
