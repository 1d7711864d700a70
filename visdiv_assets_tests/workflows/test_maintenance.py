"""Clean-up of a store: what goes and what stays, however it ends."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import KeepSettings, Settings
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store import cleaning
from visdiv_assets.store.cleaning import files_of, forget, verify
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.maintenance import clean_up, retained
from visdiv_assets.workflows.project import Project
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

NOW = datetime.now(UTC) + timedelta(hours=1)  # after all that the tests do
FEW = KeepSettings(evaluations=2, days=0)


@pytest.fixture
def home(tmp_path):
    store = Store(tmp_path / "store")
    settings = Settings(store=store.root, keep=FEW)
    project = Project(settings, store, Warehouse(store.root / "visdiv.duckdb"))
    return SimpleNamespace(
        images=tmp_path / "images", project=project, store=store, warehouse=project.warehouse
    )


def score(home, dataset="dataset", folder="a"):
    source = DirectorySource(home.images / folder)
    return evaluate(dataset, source, FakeEmbedder(), home.store, home.warehouse)[0]


def nights(home, count, dataset="dataset", folder="a"):
    """So many evaluations, an image replaced after each; then all is ten days old."""
    evaluations = []
    for night in range(count):
        for number in range(night, night + 3):
            for part in ("p", "q"):
                write_image(
                    home.images / f"{folder}/{part}/{number}.png", seed=10 * number + ord(part)
                )
        evaluations.append(score(home, dataset, folder))
        for part in ("p", "q"):
            (home.images / f"{folder}/{part}/{night}.png").unlink()
    grow_old(home)
    return evaluations


def grow_old(home, days=10):
    for path in home.store.root.rglob("*"):
        if path.is_file():
            past = path.stat().st_mtime - days * 86_400
            os.utime(path, (past, past))


def gc(home, **options):
    return clean_up(home.project, NOW, **{"apply": True, **options})


def held(home, kind):
    return sorted(file.path.stem for file in files_of(home.store) if file.kind == kind)


def segments(home):
    return set(home.store.segment_names("fake"))


def unused(home):
    return {file.path.name for file in files_of(home.store) if file.path.name.startswith(".unused")}


def snapshot(home):
    return {file.path: file.path.read_bytes() for file in files_of(home.store)}


# --- what is kept ---


def test_evaluations_are_kept_that_are_new_or_young_or_pinned(home):
    history = nights(home, 6)
    assert retained(history, [], KeepSettings(evaluations=2, days=0), NOW) == history[4:]
    assert retained(history, history[:1], KeepSettings(evaluations=2, days=0), NOW) == [
        history[0],
        *history[4:],
    ]
    assert sorted(each.number for each in retained(history, [], KeepSettings(), NOW)) == [
        *range(1, 7)
    ]
    later = NOW + timedelta(days=100)
    assert retained(history, [], KeepSettings(evaluations=1, days=90), later) == history[5:]


def test_what_no_kept_evaluation_needs_goes_and_history_stays(home):
    history = nights(home, 6)
    home.warehouse.pin_baseline("dataset", history[1].evaluation_id, NOW)
    kept = sorted(history[at].manifest_fingerprint for at in (1, 4, 5))
    done = gc(home)
    assert done.problems == []
    assert sorted({*held(home, "manifests")} - {"latest"}) == kept
    assert held(home, "indexes") == kept
    moments = sorted([*kept, history[5].manifest_fingerprint])  # the slices of the newest only
    assert held(home, "moments") == moments
    assert home.warehouse.history("dataset") == history
    for at in (1, 4, 5):
        assert home.store.read_sample(*history[at].where).moments.n == 6
    assert verify(home.store) == []
    assert done.after == sum(file.size for file in files_of(home.store))


def test_nothing_goes_that_is_younger_than_a_week(home):
    nights(home, 6)
    grow_old(home, days=-4)
    before = snapshot(home)
    assert gc(home).plan.freed == 0
    assert snapshot(home) == before


def test_without_apply_nothing_changes_and_it_is_said_what_would(home):
    nights(home, 6)
    before = snapshot(home)
    told = gc(home, apply=False)
    assert snapshot(home) == before
    done = gc(home)
    assert (told.plan.freed, told.after) == (done.plan.freed, done.after)


def test_an_evaluation_after_a_clean_up_embeds_only_what_is_new(home):
    nights(home, 6)
    gc(home)
    write_image(home.images / "a/p/99.png", seed=99)
    source = DirectorySource(home.images / "a")
    _, embedded = evaluate("dataset", source, FakeEmbedder(), home.store, home.warehouse)
    assert embedded.n_new == 1


def test_the_list_of_which_a_sample_was_scored_stays(home, monkeypatch):
    monkeypatch.setattr("visdiv_assets.spectral.progressive.FIRST_SIZE", 60)
    for number in range(80):
        write_image(home.images / f"a/{number}.png", seed=number)
    source = DirectorySource(home.images / "a")
    evaluation, _ = evaluate(
        "dataset", source, FakeEmbedder(), home.store, home.warehouse, precision=0.4
    )
    assert evaluation.is_sample
    grow_old(home)
    assert gc(home).plan.remove == []
    assert len(home.store.latest_manifest("dataset")) == 80


def test_a_dataset_that_the_results_do_not_know_is_left_alone(home):
    nights(home, 4)
    nights(home, 4, "other", "b")
    home.warehouse.path.unlink()
    with pytest.raises(VisdivError, match="nobody knows what is needed"):
        gc(home)
    score(home, "other", "b")  # which begins the results anew
    grow_old(home)
    before = {path for path in snapshot(home) if "dataset" in path.parts}
    gc(home)
    assert before <= snapshot(home).keys()


# --- segments ---


def test_a_segment_that_no_index_names_is_set_aside_and_goes_a_week_later(home):
    *_, last = nights(home, 6)
    named = {
        name
        for each in home.warehouse.history("dataset")[4:]
        for name in home.store.read_index(*each.where).table["segment"].unique().to_pylist()
    }
    before = segments(home)
    assert named < before
    done = gc(home)
    assert len(done.plan.hide) == len(before - named)
    assert segments(home) == named
    assert len(unused(home)) == len(before - named)
    assert gc(home).plan.freed == 0  # not yet
    grow_old(home)
    assert gc(home).plan.freed > 0
    assert unused(home) == set()
    folder = home.store.root / "embeddings/fake"
    assert {path.stem for path in folder.iterdir() if path.is_file()} == named
    assert home.store.read_sample(*last.where).moments.n == 6


def test_who_refers_to_a_segment_that_was_set_aside_reads_it_and_brings_it_back(home):
    first, *_ = nights(home, 6)
    index = home.store.read_index(*first.where)
    gc(home)
    home.store.write_index(*first.where, index)  # by a run that had begun before
    grow_old(home)
    for segment in index.table["segment"].unique().to_pylist():
        assert len(home.store.rows("fake", segment)) > 0
    again = gc(home)
    assert again.plan.restore
    assert set(index.table["segment"].unique().to_pylist()) <= segments(home)


def test_a_segment_that_is_set_aside_under_a_run_loses_it_nothing(home):
    nights(home, 6)
    shutil.rmtree(home.images / "a")
    for part in ("p", "q"):
        write_image(home.images / f"b/{part}/0.png", seed=ord(part))  # of the first night
        write_image(home.images / f"b/{part}/new.png", seed=5000 + ord(part))

    class CleaningUp(FakeEmbedder):
        def embed(self, pixels):
            assert gc(home).plan.hide
            return super().embed(pixels)

    source = DirectorySource(home.images / "b")
    embedder = CleaningUp()
    evaluation, embedded = evaluate("other", source, embedder, home.store, home.warehouse)
    assert (evaluation.n_images, evaluation.n_failed, embedded.n_new) == (4, 0, 2)
    grow_old(home)
    assert gc(home).plan.restore
    assert verify(home.store) == []


def test_images_that_come_back_are_embedded_again_and_their_segment_is_whole(home):
    nights(home, 6)
    gc(home)
    shutil.rmtree(home.images / "a")
    for part in ("p", "q"):
        for number in range(3):  # those of the first night, in one segment
            write_image(home.images / f"a/{part}/{number}.png", seed=10 * number + ord(part))
    evaluation = score(home)
    assert evaluation.n_images == 6
    grow_old(home)
    gc(home)
    named = home.store.read_index(*evaluation.where).table["segment"].unique().to_pylist()
    assert set(named) <= segments(home)
    assert verify(home.store) == []
    assert home.store.read_sample(*evaluation.where).moments.n == 6


def test_an_index_that_cannot_be_read_keeps_the_segments_of_its_model(home):
    *_, last = nights(home, 6)
    path = home.store._index(*last.where)
    path.write_bytes(path.read_bytes()[:-10])
    grow_old(home)
    before = segments(home)
    done = gc(home)
    assert segments(home) == before
    [problem] = done.problems
    assert "its segments are kept" in problem
    assert any(last.manifest_fingerprint in each for each in verify(home.store))


def test_what_was_never_committed_goes(home):
    nights(home, 1)
    folder = home.store.root / "embeddings/fake"
    for name in ("0123.npy", ".tmp-x", ".damaged-y.npy"):
        (folder / name).write_bytes(b"x")
    assert gc(home).plan.remove == []
    grow_old(home)
    assert {file.path.name for file in gc(home).plan.remove} == {
        "0123.npy",
        ".tmp-x",
        ".damaged-y.npy",
    }


# --- however it ends ---


class Killed(BaseException):
    pass


def counted(call, left):
    """The same call, which kills the process when none is left."""

    def counting(*arguments, **options):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return call(*arguments, **options)

    return counting


@pytest.mark.parametrize("old", [False, True], ids=["sets aside", "deletes"])
def test_a_clean_up_that_is_killed_at_any_step_leaves_a_sound_store(home, monkeypatch, old):
    nights(home, 5)
    if old:
        gc(home)
        grow_old(home)
        nights(home, 5)
    template = home.store.root.with_name("template")
    shutil.copytree(home.store.root, template)
    rows = FakeEmbedder()
    source = DirectorySource(home.images / "a")
    expected = score(home).diversity_score
    at = 0
    while True:
        shutil.rmtree(home.store.root)
        shutil.copytree(template, home.store.root)
        with monkeypatch.context() as patch:
            left = [at]
            for name in ("unlink", "rename", "rmdir"):
                patch.setattr(cleaning.Path, name, counted(getattr(cleaning.Path, name), left))
            patch.setattr(cleaning.os, "utime", counted(os.utime, left))
            try:
                gc(home)
                killed = False
            except Killed:
                killed = True
        assert verify(home.store) == []
        if at % 5 == 0 or not killed:
            again, embedded = evaluate("dataset", source, rows, home.store, home.warehouse)
            assert (again.diversity_score, embedded.n_new) == (expected, 0)
        if not killed:
            break
        at += 1
    assert at > 10


def test_what_cannot_be_deleted_is_told_and_stops_nothing(home, monkeypatch):
    nights(home, 5)
    unlink = cleaning.Path.unlink

    def refuse(path):
        if path.suffix == ".npz":
            raise PermissionError(13, "Permission denied")
        unlink(path)

    monkeypatch.setattr(cleaning.Path, "unlink", refuse)
    done = gc(home)
    assert all("Permission denied" in problem for problem in done.problems)
    assert done.problems
    assert len(held(home, "manifests")) == 3


# --- forgetting ---


def test_what_is_purged_leaves_its_embeddings_to_others(home):
    [mine] = nights(home, 1)
    [other] = nights(home, 1, "other", "a")
    assert forget(home.store, "dataset") > 0
    assert {file.path.parts[-2] for file in files_of(home.store) if file.kind == "manifests"} == {
        "other"
    }
    assert home.store.read_sample(*other.where).moments.n == 6
    assert home.warehouse.history("dataset") == [mine]
    gc(home)
    grow_old(home)
    gc(home)
    assert verify(home.store) == []
    assert len(home.store.read_index(*other.where).table) == 6


def test_what_was_written_anew_since_it_was_planned_stays(home):
    nights(home, 5)
    plan = gc(home, apply=False).plan
    assert plan.remove
    for file in plan.remove:
        file.path.write_bytes(file.path.read_bytes())
    before = snapshot(home)
    assert cleaning.clean(plan, now=NOW.timestamp()) == []
    assert before.keys() - {file.path for file in plan.hide} <= snapshot(home).keys()
