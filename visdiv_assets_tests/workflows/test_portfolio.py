"""Datasets beside each other, from what evaluations leave in store and warehouse."""

import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest

from visdiv_assets import VisdivError
from visdiv_assets.settings.model import ColumnSlices
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.compare import leaderboard
from visdiv_assets.workflows.drift import drift_of
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.mix import plan_mixture
from visdiv_assets.workflows.slices import slices_of
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image, write_images


@pytest.fixture
def home(tmp_path):
    store, warehouse = Store(tmp_path / "store"), Warehouse(tmp_path / "store/visdiv.duckdb")

    def score(name, place=None, embedder=None, **options):
        source = open_source(str(place or tmp_path / name))
        embedder = embedder or FakeEmbedder(batch_size=64)
        evaluation, embedded = evaluate(name, source, embedder, store, warehouse, **options)
        return evaluation, embedded

    return SimpleNamespace(root=tmp_path, store=store, warehouse=warehouse, score=score)


def some_images(folder, seeds):
    for seed in seeds:
        write_image(folder / f"{seed:03}.png", seed)
    return folder


# --- leaderboard ---


def test_the_newest_evaluations_come_in_the_order_of_the_names_each_once(home):
    for name in ("a", "b"):
        write_images(home.root / name, 3)
        home.score(name)
    newest, _ = home.score("a")
    found = home.warehouse.newest_evaluations(["b", "a", "b"])
    assert [each.dataset for each in found] == ["b", "a"]
    assert found[1] == newest


def test_a_dataset_that_was_never_evaluated_is_an_error_that_says_what_to_do(home):
    with pytest.raises(
        VisdivError, match="birds has never been evaluated; run `visdiv score birds`"
    ):
        home.warehouse.newest_evaluations(["birds"])
    with pytest.raises(
        VisdivError, match="birds has never been evaluated; run `visdiv score birds`"
    ):
        drift_of("birds", home.store, home.warehouse)


def test_datasets_without_a_corrected_score_come_last_and_differ_from_none(home):
    few, _ = home.score("few", write_images(home.root / "few", 3))
    many, _ = home.score("many", write_images(home.root / "many", 70))
    same, _ = home.score("same", write_images(home.root / "same", 70))
    ranked, differences = leaderboard([few, many, same])
    assert [each.dataset for each in ranked] == ["many", "same", "few"]
    assert [(each.first, each.second, each.sure) for each in differences] == [
        ("many", "same", False)
    ]


# --- mixtures ---


def test_a_dataset_that_repeats_itself_has_next_to_no_weight(home):
    some_images(home.root / "birds", range(100))
    for seed in range(100):
        write_image(home.root / f"frames/{seed}.png", seed % 3)
    evaluations = [home.score(name)[0] for name in ("frames", "birds")]
    plan = plan_mixture(evaluations, home.store)
    assert plan.names == ("frames", "birds")
    assert plan.weights[1] > 0.9
    assert not plan.corrected.too_few


def test_no_dataset_gives_more_images_than_it_has(home):
    evaluations = [
        home.score("small", some_images(home.root / "small", range(20)))[0],
        home.score("large", some_images(home.root / "large", range(100, 180)))[0],
    ]
    plan = plan_mixture(evaluations, home.store, budget=80)
    assert (plan.weights * 80 <= np.array([20.2, 80.2])).all()
    everything = plan_mixture(evaluations, home.store, budget=100)
    assert everything.weights == pytest.approx([0.2, 0.8])
    with pytest.raises(VisdivError, match="the datasets have 100 images, not 101"):
        plan_mixture(evaluations, home.store, budget=101)


def test_embeddings_of_different_models_do_not_mix(home):
    write_images(home.root / "a", 5)
    one, _ = home.score("a")
    other, _ = home.score("b", home.root / "a", FakeEmbedder("another"))
    with pytest.raises(
        VisdivError, match="different models, so they cannot be mixed: another, fake"
    ):
        plan_mixture([one, other], home.store)


# --- slices ---


def test_folders_are_slices_that_add_up_to_the_whole(home):
    some_images(home.root / "birds/owls", range(60))
    some_images(home.root / "birds/gulls", range(100, 120))
    write_image(home.root / "birds/lonely.png", 200)
    evaluation, _ = home.score("birds")
    found = slices_of(evaluation, home.store)
    assert [(part.name, part.n) for part in found] == [("owls", 60), ("gulls", 20), ("(none)", 1)]
    parts = home.store.read_slices("birds", "fake", evaluation.manifest_fingerprint)
    whole = home.store.read_sample(*evaluation.where)
    np.testing.assert_array_equal(
        sum(part.moments.outer for part in parts.values()), whole.moments.outer
    )
    assert whole.moments.n == 81


def test_a_dataset_in_one_folder_has_no_slices(home):
    evaluation, _ = home.score("birds", write_images(home.root / "birds", 5))
    assert slices_of(evaluation, home.store) == []


def test_a_column_of_the_source_names_slices(home):
    write_images(home.root / "images", 6)
    rows = [f"images/{seed:03}.png,{'owl' if seed < 4 else 'gull'}" for seed in range(6)]
    (home.root / "birds.csv").write_text("\n".join(["path,label", *rows]))
    evaluation, _ = home.score(
        "birds", home.root / "birds.csv", slices=ColumnSlices(column="label")
    )
    found = slices_of(evaluation, home.store)
    assert [(part.name, part.n) for part in found] == [("owl", 4), ("gull", 2)]


def test_images_in_archives_belong_to_their_folders_there(home):
    with tarfile.open(home.root / "birds.tar", "w") as archive:
        for seed in range(6):
            write_image(home.root / "one.png", seed)
            data = (home.root / "one.png").read_bytes()
            member = tarfile.TarInfo(f"{'owls' if seed < 4 else 'gulls'}/{seed}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    evaluation, _ = home.score("birds", home.root / "birds.tar")
    names = [part.name for part in slices_of(evaluation, home.store)]
    assert names == ["birds.tar#owls", "birds.tar#gulls"]


def test_an_image_of_which_there_are_copies_counts_in_each_slice_it_is_in(home):
    for folder in ("a", "b", "b/c"):
        write_images(home.root / "birds" / folder, 4)
    evaluation, embedded = home.score("birds")
    assert embedded.n_new == 4
    assert [part.n for part in slices_of(evaluation, home.store)] == [4, 4, 4]


# --- drift ---


def test_a_dataset_has_no_drift_before_its_second_evaluation(home):
    write_images(home.root / "birds", 5)
    home.score("birds")
    assert drift_of("birds", home.store, home.warehouse) is None
    home.score("birds", embedder=FakeEmbedder("another"))
    assert drift_of("birds", home.store, home.warehouse) is None


def test_drift_is_measured_from_other_images_or_from_a_pinned_evaluation(home):
    some_images(home.root / "birds", range(60))
    first, _ = home.score("birds")
    assert drift_of("birds", home.store, home.warehouse) is None
    some_images(home.root / "birds", range(60, 70))
    second, _ = home.score("birds")
    third, _ = home.score("birds")
    found = drift_of("birds", home.store, home.warehouse)
    [(before, drift)] = found.measured
    assert (before, found.now) == (first, third)
    assert (drift.came.images, drift.went.images, drift.stayed) == (10, 0, 60)
    assert drift.centroid > 0
    assert found.finding == "no more than chance"
    home.warehouse.pin_baseline("birds", second.evaluation_id, first.evaluated_at)
    found = drift_of("birds", home.store, home.warehouse)
    assert (found.measured, found.finding) == ((), "the images are the same as before")


# --- samples ---


def test_a_sample_is_as_large_as_needed_and_what_it_embedded_is_kept(home):
    write_images(home.root / "birds", 560)
    embedder = FakeEmbedder(batch_size=64)
    sampled, _ = home.score("birds", embedder=embedder, precision=0.3)
    assert (sampled.n_images, sampled.n_listed, sampled.is_sample) == (500, 560, True)
    assert sum(embedder.batches) == 500
    again, embedded = home.score("birds", embedder=embedder, precision=0.3)
    assert embedded.n_new == 0
    assert again.corrected_score == sampled.corrected_score
    whole, embedded = home.score("birds", embedder=embedder)
    assert (whole.n_images, whole.is_sample, embedded.n_new) == (560, False, 60)
    assert sum(embedder.batches) == 560
    assert sampled.corrected_low <= whole.corrected_score <= sampled.corrected_high


def test_a_precision_that_no_sample_reaches_takes_everything(home):
    write_images(home.root / "birds", 520)
    evaluation, embedded = home.score("birds", precision=1e-6)
    assert (evaluation.n_images, evaluation.is_sample, embedded.n_new) == (520, False, 520)
