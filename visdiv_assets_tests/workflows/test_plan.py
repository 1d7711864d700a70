"""Embedding in units of work: the result is that of one piece, whoever does what, and how often."""

import itertools
import tarfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from visdiv_assets.embedding.work import share
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import KeepSettings, Settings
from visdiv_assets.sources import pieces
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.plans import done_units, forget_plan, parts_of, read_plan, read_unit
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate, list_dataset
from visdiv_assets.workflows.maintenance import clean_up, compact_store
from visdiv_assets.workflows.plan import embed_units, make_plan, plan_of, planned_images
from visdiv_assets.workflows.project import Project
from visdiv_assets_tests.embedding.fakes import (
    FakeEmbedder,
    UnloadedEmbedder,
    WatchedSource,
    write_image,
    write_images,
)


@pytest.fixture
def home(make_home, tmp_path):
    """A place for a store, a source of 20 images and one that is none, and where results go."""
    place = make_home(tmp_path)
    folder = write_images(tmp_path / "images", 20)
    (folder / "fake.png").write_bytes(b"I am not an image")
    return SimpleNamespace(
        place=place,
        store=place.store(),
        folder=folder,
        source=WatchedSource(folder),
        warehouse=Warehouse(tmp_path / "results/visdiv.duckdb"),
        results=tmp_path / "results",
    )


def plan(home, most=4, embedder=None):
    return planned("photos", home.source, embedder or UnloadedEmbedder(), home.store, most)


def planned(dataset, source, embedder, store, most):
    listed = list_dataset(dataset, source, store)
    return make_plan(dataset, listed, source, embedder, store, lambda _: most)


def embed(home, text, embedder=None):
    """By another process: with a view of the store and the source of its own."""
    store = home.place.store()
    made = plan_of("photos", store)
    numbers = share(text, len(made.units))
    return embed_units(made, numbers, home.source, embedder or FakeEmbedder(), store)


def merge(home, embedder=None):
    made = plan_of("photos", home.store)
    images = planned_images(made, home.store)
    evaluation, embedded = evaluate(
        "photos",
        home.source,
        embedder or UnloadedEmbedder(),
        home.store,
        home.warehouse,
        manifest=images,
    )
    forget_plan(home.store, made)
    return evaluation, embedded


def without_names(evaluation):
    return replace(evaluation, evaluation_id="", number=0, evaluated_at=None, seconds=0.0)


def alone(home, tmp_path):
    """What one process makes of it, without units."""
    store, warehouse = Store(tmp_path / "alone"), Warehouse(tmp_path / "alone/visdiv.duckdb")
    return store, evaluate("photos", home.source, FakeEmbedder(), store, warehouse)


@pytest.mark.parametrize("most", [1, 3, 20, 1000])
@pytest.mark.parametrize("shares", [1, 3])
def test_units_of_any_size_by_any_number_of_processes_give_the_same_bits(
    home, tmp_path, most, shares
):
    store, (expected, one) = alone(home, tmp_path)
    made = plan(home, most)
    assert sum(made.sizes) == 21
    for number in range(shares, 0, -1):  # in any order
        embed(home, f"{number}/{shares}")
    home.source.read_ids.clear()
    evaluation, embedded = merge(home)
    assert home.source.read_ids == []
    assert without_names(evaluation) == without_names(expected)
    assert embedded.index.failures() == one.index.failures()
    samples = [each.read_sample(*evaluation.where) for each in (store, home.store)]
    assert samples[0].moments.outer.tobytes() == samples[1].moments.outer.tobytes()
    assert samples[0].rows.tobytes() == samples[1].rows.tobytes()


def test_the_same_images_give_the_same_plan(home):
    first, again = plan(home), plan(home)
    assert first == again == read_plan(home.store, "photos")
    assert first.sizes == (4, 4, 4, 4, 4, 1)
    ids = [read_unit(home.store, first, at)["image_id"].to_pylist() for at in range(6)]
    assert [*itertools.chain(*ids)] == sorted(path.name for path in home.folder.iterdir())


def test_what_the_store_has_is_not_planned(home, tmp_path):
    evaluate("photos", home.source, FakeEmbedder(), home.store, home.warehouse)
    write_image(home.folder / "new.png", seed=99)
    home.source.read_ids.clear()
    made = plan(home)
    assert made.sizes == (1,)
    assert home.source.read_ids == []
    assert embed(home, "1/1").embedded == 1
    assert merge(home)[0].n_images == 21


def test_where_nothing_is_missing_there_is_nothing_to_do(home):
    evaluate("photos", home.source, FakeEmbedder(), home.store, home.warehouse)
    made = plan(home)
    assert made.units == ()
    assert embed(home, "2/3", UnloadedEmbedder()).units == 0
    assert merge(home)[0].n_images == 20


class Ending(FakeEmbedder):
    """Ends the process in its third batch."""

    def embed(self, pixels):
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return super().embed(pixels)


def test_a_process_that_is_ended_goes_on_where_it_was(home):
    plan(home)
    with pytest.raises(KeyboardInterrupt):
        embed(home, "1/1", Ending())
    made = plan_of("photos", home.store)
    assert done_units(home.store, made) == {0, 1}
    home.source.read_ids.clear()
    done = embed(home, "1/1")
    assert (done.units, done.there, done.failed) == (4, 2, 1)
    assert len(set(home.source.read_ids)) == 21 - 8
    assert embed(home, "1/1", UnloadedEmbedder()).there == 6


def test_units_that_are_done_twice_leave_each_content_in_one_row(home):
    plan(home)
    embed(home, "1/2")
    embed(home, "1/1")
    merge(home)
    names = home.store.segment_names("fake")
    keys = [key for name in names for key in home.store.segment_keys("fake", name)[0]]
    assert len(keys) == len(set(keys)) == 20


def test_a_plan_that_is_made_again_leaves_out_what_was_done(home):
    plan(home)
    embed(home, "1/2")
    write_image(home.folder / "new.png", seed=99)
    made = plan(home)
    assert sum(made.sizes) == 22 - 3 * 4  # the units 1, 3 and 5 of 6 were done
    embed(home, "1/1")
    evaluation, _ = merge(home)
    assert (evaluation.n_images, evaluation.n_failed) == (21, 1)


def test_a_merge_wants_all_units_and_names_those_that_are_missing(home):
    with pytest.raises(VisdivError, match="there is no plan of photos; run `visdiv plan photos`"):
        merge(home)
    plan(home)
    embed(home, "2/3")
    with pytest.raises(
        VisdivError,
        match=r"4 of 6 units of photos are not embedded yet \(1, 3, 4, 6\); run `visdiv embed phot",
    ):
        merge(home)
    plan(home, most=1)
    with pytest.raises(VisdivError, match=r"not embedded yet \(1, 2, 3, .*10 and \d more\)"):
        merge(home)


def test_a_plan_is_for_one_model(home):
    plan(home)
    with pytest.raises(VisdivError, match="the plan of photos is for the model fake, but here the"):
        embed(home, "1/1", FakeEmbedder("other"))


def test_an_evaluation_takes_what_units_have_done_and_embeds_the_rest(home):
    plan(home)
    embed(home, "1/2")
    home.source.read_ids.clear()
    evaluation, embedded = evaluate(
        "photos", home.source, FakeEmbedder(), home.store, home.warehouse
    )
    assert len(set(home.source.read_ids)) == 21 - 12
    assert embedded.n_new == 8  # the other one is no image
    assert evaluation.n_images == 20


def test_an_image_that_changes_meanwhile_counts_as_it_was_listed_and_is_read_by_the_next(home):
    plan(home)
    embed(home, "1/1")
    write_image(home.folder / "003.png", seed=1234)
    first, _ = merge(home)
    second, embedded = evaluate("photos", home.source, FakeEmbedder(), home.store, home.warehouse)
    assert embedded.n_new == 1
    assert second.diversity_score != first.diversity_score


def test_no_archive_is_read_by_two_units(tmp_path, make_home):
    folder = write_images(tmp_path / "images", 30)
    for number in range(6):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for at in range(5 * number, 5 * number + 5):
                archive.add(folder / f"{at:03}.png", f"{at:03}.png")
    source, store = open_source(f"{tmp_path}/*.tar"), make_home(tmp_path).store()
    made = planned("tars", source, FakeEmbedder(), store, 12)
    assert made.sizes == (10, 10, 10)
    for number in range(3):
        ids = read_unit(store, made, number)["image_id"].to_pylist()
        assert {each[0] for each in ids} == {str(2 * number), str(2 * number + 1)}
        assert embed_units(made, [number], source, FakeEmbedder(), store).embedded == 10


@pytest.mark.parametrize("most", [1, 4, 12])
def test_a_plan_does_not_depend_on_how_much_of_a_manifest_is_read_at_a_time(
    tmp_path, make_home, monkeypatch, most
):
    folder = write_images(tmp_path / "images", 30)
    for name, numbers in {"a": range(2), "a!b": range(2, 11), "a.b": range(11, 30)}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for at in numbers:
                archive.add(folder / f"{at:03}.png", f"{at:03}.png")
    source, store = open_source(f"{tmp_path}/*.tar"), make_home(tmp_path).store()
    made = []
    for rows in (131_072, 1, 3, 7, 29):
        monkeypatch.setattr(pieces, "PIECE_ROWS", rows)
        made.append(planned("tars", source, UnloadedEmbedder(), store, most))
        units = range(len(made[-1].units))
        ids = [read_unit(store, made[-1], at)["image_id"].to_pylist() for at in units]
        assert (
            sorted(itertools.chain(*ids))
            == store.read_manifest("tars", made[-1].fingerprint).table["image_id"].to_pylist()
        )
    assert all(each == made[0] for each in made)


def test_a_clean_up_keeps_a_plan_and_what_came_of_it_until_it_is_merged(home):
    write_image(home.folder / "first.png", seed=77)
    evaluate("photos", home.source, FakeEmbedder(), home.store, home.warehouse)
    for path in home.folder.iterdir():
        path.write_bytes(path.read_bytes() + b" ")  # other contents
    plan(home)
    embed(home, "1/2")
    embed(home, "2/2")
    home.place.grow_old(200)
    settings = Settings(results=home.results, keep=KeepSettings(evaluations=1, days=0))
    project, now = Project(settings, home.store, home.warehouse), datetime.now(UTC)
    clean_up(project, now, apply=True)
    compact_store(project, now, apply=True)
    home.place.grow_old(200)
    clean_up(project, now + timedelta(days=1), apply=True)
    made = plan_of("photos", home.store)
    assert len(done_units(home.store, made)) == len(made.units)
    home.source.read_ids.clear()
    assert merge(home)[0].n_images == 21
    assert home.source.read_ids == []
    assert parts_of(home.store, "photos") == []
    assert [*home.store.objects.files("plans")] == []


@pytest.mark.parametrize("spoilt", [b"", b"{}", b"[1]", b'{"dataset": "other"}', b"\xff"])
def test_a_damaged_plan_counts_as_none(home, spoilt):
    plan(home)
    home.store.objects.write("plans/photos/current", lambda file: file.write(spoilt))
    with pytest.raises(VisdivError, match="there is no plan of photos"):
        embed(home, "1/1")
    plan(home)
    assert embed(home, "1/1").units == 6


def test_a_damaged_result_is_made_again_by_the_merge(home):
    made = plan(home)
    embed(home, "1/1")
    name = f"indexes/photos/fake/{made.fingerprint}+{made.units[2]}.parquet"
    home.store.objects.write(name, lambda file: file.write(b"PAR1"))
    evaluation, embedded = merge(home, FakeEmbedder())
    assert (evaluation.n_images, embedded.n_new) == (20, 0)  # its rows were in the store


def test_a_worker_whose_plan_is_gone_stops(home):
    first = plan(home, most=8)
    second = plan(home, most=4)
    home.store.objects.delete(f"plans/photos/{first.images}.parquet")
    with pytest.raises(VisdivError, match="the plan of photos was merged or replaced meanwhile"):
        embed_units(first, [1], home.source, FakeEmbedder(), home.store)
    assert done_units(home.store, second) == set()


def test_a_worker_goes_on_with_its_own_plan_while_another_one_is_made(home):
    first = plan(home, most=8)
    second = plan(home, most=4)
    assert embed_units(first, [1], home.source, FakeEmbedder(), home.store).embedded == 8
    assert done_units(home.store, first) == {1}
    assert done_units(home.store, second) == set()
    home.source.read_ids.clear()
    embed(home, "1/1")
    assert len(home.source.read_ids) == 21
    assert merge(home)[0].n_images == 20


def test_images_of_other_units_are_refused(home):
    made = plan(home)
    name, other = (f"plans/photos/{each.images}.parquet" for each in (made, plan(home, most=3)))
    content = home.store.objects.local(other).read_bytes()
    home.store.objects.write(name, lambda file: file.write(content))
    with pytest.raises(VisdivError, match="the plan of photos was made again meanwhile, or is dam"):
        embed_units(made, [0], home.source, FakeEmbedder(), home.store)
    home.store.objects.write(name, lambda file: file.write(b"PAR1"))
    with pytest.raises(VisdivError, match=r"is damaged .*; run `visdiv plan photos` again"):
        embed_units(made, [0], home.source, FakeEmbedder(), home.store)


def test_a_worker_that_does_not_see_the_images_commits_nothing(home):
    made = plan(home)
    elsewhere = home.folder.with_name("elsewhere")
    home.folder.rename(elsewhere)
    with pytest.raises(
        VisdivError, match=r"not one image of unit 1 can be read from .* No such fi"
    ):
        embed(home, "1/1")
    elsewhere.rename(home.folder)
    assert done_units(home.store, made) == set()
    assert embed(home, "1/1").embedded == 20


def test_an_image_that_goes_meanwhile_is_a_failure_of_its_unit(home):
    plan(home)
    (home.folder / "005.png").unlink()
    assert embed(home, "1/1").failed == 2
    evaluation, embedded = merge(home)
    assert evaluation.n_images == 19
    assert [name for name, _ in embedded.index.failures()] == ["005.png", "fake.png"]


def test_a_plan_that_is_made_while_another_is_merged_stays(home):
    first = plan(home)
    embed(home, "1/1")
    write_image(home.folder / "new.png", seed=99)
    second = plan(home)
    forget_plan(home.store, first)  # as a merge that began before does in the end
    assert plan_of("photos", home.store) == second
    embed(home, "1/1")
    home.source.read_ids.clear()
    assert merge(home)[0].n_images == 21
    assert home.source.read_ids == []


def test_a_plan_does_not_take_the_place_of_what_was_scored_since(home):
    plan(home)
    embed(home, "1/1")
    write_image(home.folder / "new.png", seed=99)
    evaluate("photos", home.source, FakeEmbedder(), home.store, home.warehouse)
    with pytest.raises(VisdivError, match="photos has been scored since it was planned, with othe"):
        merge(home)
    assert plan(home).units == ()
    assert merge(home)[0].n_images == 21


def test_a_clean_up_keeps_what_units_of_an_earlier_plan_have_done(home):
    write_image(home.folder / "first.png", seed=77)
    evaluate("photos", home.source, FakeEmbedder(), home.store, home.warehouse)
    for path in home.folder.iterdir():
        path.write_bytes(path.read_bytes() + b" ")
    plan(home)
    embed(home, "1/2")
    write_image(home.folder / "new.png", seed=99)
    plan(home)
    home.place.grow_old(200)
    settings = Settings(results=home.results, keep=KeepSettings(evaluations=1, days=0))
    clean_up(Project(settings, home.store, home.warehouse), datetime.now(UTC), apply=True)
    embed(home, "1/1")
    home.source.read_ids.clear()
    assert merge(home)[0].n_images == 22
    assert home.source.read_ids == []


@pytest.mark.parametrize(
    "name", ["stray", ".snapshot/current", "photos/deep/current", "a\\b/current"]
)
def test_odd_files_among_the_plans_stop_no_clean_up(home, name):
    evaluate("photos", home.source, FakeEmbedder(), home.store, home.warehouse)
    home.store.objects.write(f"plans/{name}", lambda file: file.write(b"?"))
    settings = Settings(results=home.results)
    assert clean_up(
        Project(settings, home.store, home.warehouse), datetime.now(UTC), apply=True
    ).done


def test_a_result_with_other_columns_counts_as_none(home):
    made = plan(home)
    name = f"indexes/photos/fake/{made.fingerprint}+{made.units[2]}.parquet"
    content = home.store.objects.local(f"plans/photos/{made.images}.parquet").read_bytes()
    home.store.objects.write(name, lambda file: file.write(content))
    assert parts_of(home.store, "photos") == []
    evaluation, _ = evaluate("photos", home.source, FakeEmbedder(), home.store, home.warehouse)
    assert evaluation.n_images == 20


def test_images_in_folders_of_other_sources_are_cut_anywhere(tmp_path):
    source = DirectorySource(write_images(tmp_path / "a#b", 5))
    made = planned("odd", source, FakeEmbedder(), Store(tmp_path / "store"), 2)
    assert made.sizes == (2, 2, 1)
