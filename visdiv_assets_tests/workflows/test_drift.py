"""Drift: what a dataset is compared with, night after night."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.spectral.sample import Sample
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.drift import baselines_of, drift_between, drift_from

ICONS = Path(__file__).parents[1] / "data" / "embeddings_icons.npy"
START = datetime(2026, 3, 1, 2, tzinfo=UTC)


def evaluation(night, fingerprint, **changes):
    made = Evaluation(
        evaluation_id=f"e{night}",
        dataset="birds",
        evaluated_at=START + timedelta(days=night),
        run_id=None,
        model_id="model",
        n_images=1000,
        n_failed=0,
        dimension=512,
        effective_rank=1.0,
        participation_ratio=1.0,
        diversity_score=0.5,
        rating="Good",
        stars=3,
        manifest_fingerprint=fingerprint,
        seconds=1.0,
        number=night + 1,
    )
    return replace(made, **changes)


def compared(fingerprints, *, pinned=None, **changes):
    """The nights that the last night is compared with, the older one first."""
    nights = [evaluation(night, each) for night, each in enumerate(fingerprints)]
    *earlier, newest = [*nights[:-1], replace(nights[-1], **changes)]
    chosen = None if pinned is None else [*earlier, newest][pinned]
    found = baselines_of(newest, earlier, chosen)
    return [int(each.evaluation_id[1:]) for each in found]


# --- what it is compared with ---


def test_a_dataset_is_compared_with_its_oldest_state_and_with_the_one_before():
    assert compared("abcd") == [0, 2]


def test_two_states_are_compared_once():
    assert compared("ab") == [0]
    assert compared("aab") == [1]


@pytest.mark.parametrize("nights", range(1, 5))
def test_scoring_a_dataset_again_changes_no_baseline(nights):
    assert compared("abc" + "d" * nights) == [0, 2]


def test_a_dataset_that_was_never_other_than_now_is_compared_with_nothing():
    assert compared("a") == []
    assert compared("aaa") == []


def test_a_dataset_that_is_back_where_it_began_is_compared_with_what_was_between():
    assert compared("aba") == [1]


def test_slow_drift_is_looked_for_over_90_days():
    assert compared([f"f{night}" for night in range(120)]) == [29, 118]


def test_a_state_of_long_ago_is_compared_with_if_there_is_none_since():
    assert compared("ab", evaluated_at=START + timedelta(days=400)) == [0]


def test_a_pinned_evaluation_is_the_fixed_point_and_what_lies_before_is_not_looked_at():
    assert compared("abcd", pinned=1) == [1, 2]
    assert compared("abcd", pinned=2) == [2]
    assert compared("abcd", pinned=3) == []
    assert compared("abcdd", pinned=3) == []


def test_a_pinned_evaluation_of_another_model_or_of_an_earlier_dataset_is_not_one():
    earlier = [evaluation(0, "a", model_id="old"), evaluation(1, "b"), evaluation(2, "c")]
    newest = evaluation(3, "d")
    assert baselines_of(newest, earlier, earlier[0]) == earlier[1:]
    assert baselines_of(newest, earlier, evaluation(-5, "z")) == earlier[1:]


def test_only_evaluations_of_the_same_model_and_of_all_images_are_compared():
    earlier = [
        evaluation(0, "a", model_id="old"),
        evaluation(1, "b"),
        evaluation(2, "c.sample500", n_listed=2000),
    ]
    assert baselines_of(evaluation(3, "d"), earlier) == [earlier[1]]


# --- night after night ---


class Home:
    """A store and its results, into which nights are written as evaluations leave them."""

    def __init__(self, root):
        self.store, self.warehouse = Store(root), Warehouse(root / "visdiv.duckdb")
        self.earlier = []

    def night(self, rows, keys):
        night = len(self.earlier)
        made = evaluation(night, hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest())
        sample = Sample.of(rows, keys=keys)
        self.store.write_moments(*made.where, sample, 0.0, contents="c", n_slices=0)
        found = drift_from(made, self.earlier, self.store, self.warehouse)
        self.earlier.append(made)
        return found


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.fixture(scope="module")
def icons():
    """Rows of fewer dimensions, so that nights pass faster: kinds differ as before."""
    rows = np.load(ICONS).astype(np.float64)[:, :128]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def replaced_nightly(home, rows, nights=range(31), seed=0):
    """The findings of nights with 500 images, of which 10 are replaced each night."""
    home.earlier.clear()
    keys = np.random.default_rng(seed).integers(0, 2**64, len(rows), dtype=np.uint64)
    parts = (slice(10 * night, 10 * night + 500) for night in nights)
    return [home.night(rows[part], keys[part]) for part in parts]


def test_drift_of_2_percent_a_night_is_told_within_30_nights(icons, home):
    # Every fourth image that comes is of another kind: too few of them in one night.
    rows = np.random.default_rng(0).permutation(icons[800:3900])[:800]
    rows[500::4] = icons[3960:4035]
    found = replaced_nightly(home, rows)
    assert sum(drift.large for each in found[1:] for _, drift in each.measured[-1:]) < 10
    assert all(each.large for each in found[15:])
    oldest, drift = found[-1].measured[0]
    assert (oldest, drift.came.images, drift.went.images) == (home.earlier[0], 300, 300)


def test_2_percent_of_the_same_kind_a_night_are_no_drift(icons, home):
    large = 0
    for seed in range(4):
        rows = np.random.default_rng(seed).permutation(icons[800:3900])[:800]
        found = replaced_nightly(home, rows, nights=(0, 29, 30), seed=seed)
        assert found[-1].measured[0][1].came.images == 300
        large += found[-1].large
    assert large <= 1  # each is with a probability of 5 %


def test_drift_is_told_every_night_until_it_is_pinned(icons, home):
    rng = np.random.default_rng(0)
    rows = np.concatenate([icons[800:1200], icons[3960:4060]])
    keys = rng.integers(0, 2**64, len(rows), dtype=np.uint64)
    home.night(rows[:400], keys[:400])
    for _ in range(3):
        assert home.night(rows, keys).large
    for each in home.earlier:
        home.warehouse.record(each, np.ones(512))
    home.warehouse.pin_baseline("birds", home.earlier[1].evaluation_id, START)
    found = home.night(rows, keys)
    assert (found.large, found.finding) == (False, "the images are the same as before")


def test_a_baseline_that_cannot_be_read_leaves_the_other(icons, home):
    keys = np.random.default_rng(0).integers(0, 2**64, 400, dtype=np.uint64)
    for n in (300, 350, 400):
        home.night(icons[800 : 800 + n], keys[:n])
    oldest = home.earlier[0]
    for path in home.store.root.rglob(f"{oldest.manifest_fingerprint}.npz"):
        path.unlink()
    *earlier, newest = home.earlier
    found = drift_from(newest, earlier, home.store, home.warehouse)
    assert [before for before, _ in found.measured] == [home.earlier[1]]
    with pytest.raises(VisdivError, match="run `visdiv score birds`"):
        drift_from(newest, earlier[:1], home.store, home.warehouse)


def test_evaluations_of_different_models_are_not_compared(home):
    with pytest.raises(VisdivError, match="embedded with different models"):
        drift_between(evaluation(0, "a"), evaluation(1, "b", model_id="other"), home.store)


def test_folders_of_two_datasets_have_nothing_to_do_with_each_other(icons, home):
    keys = np.random.default_rng(0).integers(0, 2**64, 800, dtype=np.uint64)
    mine = evaluation(0, "a", sampling_unit="folder")
    later = evaluation(1, "b", sampling_unit="folder")
    for each, part in ((mine, slice(0, 400)), (later, slice(400, 800))):
        order = np.argsort(keys[part])
        sample = Sample.of(icons[800:][part][order], keys=keys[part][order])
        sample = replace(sample, units=np.arange(400, dtype=np.uint64) % 4)
        for where in (each.where, replace(each, dataset="cats").where):
            home.store.write_moments(*where, sample, 0.0, contents="c", n_slices=0)
    assert drift_between(mine, later, home.store).p is None  # four folders do not tell
    of_two = drift_between(mine, replace(later, dataset="cats"), home.store)
    assert of_two.p is not None
    in_another_way = replace(later, sampling_unit="near-duplicates")
    assert drift_between(mine, in_another_way, home.store).p == of_two.p
