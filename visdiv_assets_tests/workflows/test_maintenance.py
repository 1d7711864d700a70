"""Clean-up and compaction of a store: what goes and what stays, however they end."""

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import obstore
import pyarrow as pa
import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import KeepSettings, Settings
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store import cleaning, compaction
from visdiv_assets.store.cleaning import files_of, forget, kind_of, verify
from visdiv_assets.store.index import EmbeddingIndex
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.maintenance import clean_up, compact_store, retained
from visdiv_assets.workflows.project import Project
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

NOW = datetime.now(UTC) + timedelta(hours=1)  # after all that the tests do
FEW = KeepSettings(evaluations=2, days=0)


@pytest.fixture
def home(make_home, tmp_path):
    """A place for a store, and a project whose store is there."""
    place = make_home(tmp_path)
    settings = Settings(results=tmp_path / "results", keep=FEW)
    warehouse = Warehouse(settings.results_folder / "visdiv.duckdb")
    project = Project(settings, place.store(), warehouse)
    return SimpleNamespace(
        images=tmp_path / "images",
        place=place,
        project=project,
        store=project.store,
        warehouse=warehouse,
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
    home.place.grow_old(days)


def gc(home, **options):
    return clean_up(home.project, NOW, **{"apply": True, **options})


def held(home, kind):
    names = [PurePosixPath(file.name) for file in files_of(home.store) if kind_of(file) == kind]
    return sorted(name.stem for name in names if name.name not in ("latest", "newest"))


def segments(home):
    return set(home.store.segment_names("fake"))


def unused(home):
    names = {file.name.rpartition("/")[2] for file in files_of(home.store)}
    return {name for name in names if name.startswith(".unused")}


def snapshot(home):
    objects = home.store.objects
    return {file.name: objects.local(file.name).read_bytes() for file in files_of(home.store)}


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
    assert held(home, "manifests") == kept
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
    before = {name for name in snapshot(home) if "dataset" in name.split("/")}
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
    files = home.store.objects.files("embeddings/fake")
    assert {PurePosixPath(file.name).stem for file in files if ".keys" not in file.name} == named
    assert home.store.read_sample(*last.where).moments.n == 6


def test_who_refers_to_a_segment_that_was_set_aside_reads_it_and_brings_it_back(home):
    first, *_ = nights(home, 6)
    index = home.store.read_index(*first.where)
    gc(home)
    home.store.write_index(*first.where, index)  # by a run that had begun before
    assert gc(home).plan.restore == []  # it may have moved on in a week
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
    path = home.place.root / home.store._index(*last.where)
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
    for name in ("0123.npy", ".tmp-x", ".damaged-y.npy"):
        (home.place.root / f"embeddings/fake/{name}").write_bytes(b"x")
    assert gc(home).plan.remove == []
    grow_old(home)
    assert {file.name.rpartition("/")[2] for file in gc(home).plan.remove} == {
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


def dying(patch, left):
    """Let the process die after so many of the smallest steps that change a store."""
    for name in ("unlink", "rename", "replace", "rmdir"):
        patch.setattr(Path, name, counted(getattr(Path, name), left))
    patch.setattr(os, "utime", counted(os.utime, left))
    copy, delete = counted(obstore.copy, left), counted(obstore.delete, left)

    def rename(store, name, new):
        copy(store, name, new)
        delete(store, name)

    patch.setattr(obstore, "put", counted(obstore.put, left))
    patch.setattr(obstore, "delete", delete)
    patch.setattr(obstore, "rename", rename)


def is_killed(act, home, at):
    """Whether it dies before the step of that number; else it has come to its end."""
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, [at])
        try:
            act(home)
        except Killed:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["sets aside", "deletes"])
def test_a_clean_up_that_is_killed_at_any_step_leaves_a_sound_store(home, old):
    nights(home, 4)
    if old:
        gc(home)
        grow_old(home)
        nights(home, 4)
    template = home.place.saved()
    source = DirectorySource(home.images / "a")
    expected = score(home).diversity_score
    at = 0
    while True:
        home.place.restore(template)
        killed = is_killed(gc, home, at)
        assert verify(home.store) == []
        if at % 5 == 0 or not killed:
            again, embedded = evaluate(
                "dataset", source, FakeEmbedder(), home.store, home.warehouse
            )
            assert (again.diversity_score, embedded.n_new) == (expected, 0)
        if not killed:
            break
        at += 1
    assert at > 10


def test_what_cannot_be_deleted_is_told_and_stops_nothing(home, monkeypatch):
    nights(home, 5)
    objects, refused = (
        type(home.store.objects),
        {
            "disk": PermissionError(13, "Permission denied"),
            "bucket": VisdivError("cannot delete it: Permission denied"),
        },
    )
    delete = objects.delete

    def refuse(self, name):
        if name.endswith(".npz"):
            raise refused[home.place.kind]
        delete(self, name)

    monkeypatch.setattr(objects, "delete", refuse)
    done = gc(home)
    assert all("Permission denied" in problem for problem in done.problems)
    assert done.problems
    assert len(held(home, "manifests")) == 2


def test_a_segment_that_is_being_embedded_again_stays(home):
    """The writer has put the rows in place, and not yet the keys that commit them."""
    nights(home, 5)
    gc(home)
    hidden = sorted(unused(home))[0]
    grow_old(home)
    rows = f"embeddings/fake/{hidden.removeprefix('.unused-').removesuffix('.parquet')}.npy"
    content = home.store.objects.local(rows).read_bytes()
    home.store.objects.write(rows, lambda file: file.write(content))
    gc(home)
    assert home.store.objects.about(rows).size == len(content)


def test_a_segment_that_was_committed_again_since_it_was_planned_stays(home):
    nights(home, 5)
    gc(home)
    grow_old(home)
    plan = gc(home, apply=False).plan
    gone = [file.name for file in plan.remove if file.name.endswith(".npy")]
    assert gone
    folder, _, name = gone[0].rpartition("/")
    keys = f"{folder}/{name.removesuffix('.npy')}.parquet"
    content = home.store.objects.local(f"{folder}/.unused-{keys.rpartition('/')[2]}").read_bytes()
    home.store.objects.write(keys, lambda file: file.write(content))
    cleaning.clean(home.store, plan)
    assert len(home.store.rows("fake", name.removesuffix(".npy"))) > 0


def test_a_store_to_which_other_results_refer_is_left_alone(home, tmp_path):
    nights(home, 5)
    other = Warehouse(tmp_path / "elsewhere/visdiv.duckdb")
    source = DirectorySource(home.images / "a")
    evaluate("dataset", source, FakeEmbedder(), home.store, other)
    before = snapshot(home)
    for warehouse in (home.warehouse, other):
        project = replace(home.project, warehouse=warehouse)
        with pytest.raises(VisdivError, match=r"results that refer to this store, too"):
            clean_up(project, NOW, apply=True)
    assert snapshot(home) == before
    for note in home.place.root.glob("results/*"):
        note.unlink()
    evaluate("dataset", source, FakeEmbedder(), home.store, home.warehouse)  # which notes its own
    assert gc(home).problems == []


def test_compaction_lasts_though_a_clean_up_follows_at_once(home):
    *_, last = nights(home, 4)
    index = home.store.read_index(*last.where)
    home.store.write_index(*last.where, index)  # young, so it names the old segments
    compacted(home)
    joined = segments(home)
    gc(home)
    assert segments(home) == joined
    rows = all_rows(home, last)
    score(home)
    grow_old(home)
    gc(home)
    assert segments(home) >= joined
    assert all_rows(home, last) == rows


def test_a_damaged_head_of_a_segment_costs_that_segment_only(home):
    *_, last = nights(home, 4)
    folder = home.place.root / "embeddings/fake"
    path = folder / f"{min(segments(home))}.npy"
    sound = path.read_bytes()
    for at in (20, 61, 75, 80):
        content = bytearray(sound)
        content[at] ^= 4
        path.write_bytes(bytes(content))
        compact_store(home.project, NOW, apply=False)
    path.write_bytes(sound)
    assert all_rows(home, last)


# --- forgetting ---


def test_what_is_purged_leaves_its_embeddings_to_others(home):
    [mine] = nights(home, 1)
    [other] = nights(home, 1, "other", "a")
    assert forget(home.store, "dataset") > 0
    assert home.store.datasets() == ["other"]
    assert not any(file.name.split("/")[1] == "dataset" for file in files_of(home.store))
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
    for file in plan.remove:  # in a bucket, another content: its versions are of the content
        (home.place.root / file.name).write_bytes(b"written anew")
    before = {file.name for file in files_of(home.store)}
    assert cleaning.clean(home.store, plan) == []
    assert before - {file.name for file in plan.hide} <= {
        file.name for file in files_of(home.store)
    }


# --- compaction ---


def compacted(home, **options):
    return compact_store(home.project, NOW, **{"apply": True, **options})


def all_rows(home, evaluation):
    """The rows of an evaluation by image and content, to the last bit."""
    table = home.store.read_index(*evaluation.where).table
    columns = (table[name].to_pylist() for name in ("image_id", "content_key", "segment", "row"))
    return {
        (image, key): home.store.rows("fake", segment)[row].tobytes()
        for image, key, segment, row in zip(*columns, strict=True)
    }


def test_small_segments_become_one_and_every_evaluation_has_its_rows(home):
    history = nights(home, 5)
    before = [all_rows(home, each) for each in history]
    assert len(segments(home)) == 5
    done = compacted(home)
    assert (done.problems, done.plan.n_segments) == ([], 5)
    assert len(segments(home)) == 1
    assert [all_rows(home, each) for each in history] == before
    assert verify(home.store) == []
    assert compacted(home).plan.joins == []
    _, embedded = evaluate(
        "dataset", DirectorySource(home.images / "a"), FakeEmbedder(), home.store, home.warehouse
    )
    assert embedded.n_new == 0


def test_the_old_segments_go_a_week_later(home):
    *_, last = nights(home, 5)
    rows = all_rows(home, last)
    compacted(home)
    assert len(unused(home)) == 5
    gc(home)
    assert len(unused(home)) == 5
    grow_old(home)
    gc(home)
    assert unused(home) == set()
    assert all_rows(home, last) == rows
    assert verify(home.store) == []


def test_rows_that_no_index_names_stay_behind(home):
    nights(home, 6)
    gc(home)  # which leaves the last two evaluations
    grow_old(home)
    kept = home.warehouse.history("dataset")[4:]
    used = {key for each in kept for key in all_rows(home, each)}
    compacted(home)
    [name] = segments(home)
    keys, _ = home.store.segment_keys("fake", name)
    assert len(keys) == len({key for _, key in used})


def test_datasets_keep_their_segments_apart(home):
    for number in range(3):
        for folder, seed in (("a", 1000), ("b", 2000)):
            for at in (2 * number, 2 * number + 1):
                write_image(home.images / f"{folder}/{at}.png", seed=seed + at)
        score(home)
        score(home, "other", "b")
    for number in range(3):  # of both
        for folder in "ab":
            write_image(home.images / f"{folder}/{100 + number}.png", seed=100 + number)
        score(home)
        score(home, "other", "b")
    assert len(segments(home)) == 9
    grow_old(home)
    compacted(home)
    named = {
        dataset: {
            name
            for each in home.warehouse.history(dataset)
            for name in home.store.read_index(*each.where).segments()
        }
        for dataset in ("dataset", "other")
    }
    assert len(segments(home)) == 3
    assert [len(each) for each in named.values()] == [2, 2]
    assert len(named["dataset"] & named["other"]) == 1


def test_what_is_young_is_left_alone(home):
    nights(home, 5)
    grow_old(home, days=-9)
    assert compacted(home).plan.joins == []
    assert len(segments(home)) == 5


def test_without_apply_nothing_changes(home):
    nights(home, 5)
    before = {file.name: file.version for file in home.store.objects.files("embeddings")}
    assert compacted(home, apply=False).plan.n_segments == 5
    assert {file.name: file.version for file in home.store.objects.files("embeddings")} == before


def test_an_index_in_use_is_left_alone_and_the_next_evaluation_finds_the_new_places(home):
    *_, last = nights(home, 4)
    rows, old = all_rows(home, last), segments(home)
    index = home.store.read_index(*last.where)
    home.store.write_index(*last.where, index)  # now
    compacted(home)
    assert set(home.store.read_index(*last.where).segments()) <= old
    assert all_rows(home, last) == rows
    source = DirectorySource(home.images / "a")
    newest, embedded = evaluate("dataset", source, FakeEmbedder(), home.store, home.warehouse)
    assert embedded.n_new == 0
    assert set(home.store.read_index(*newest.where).segments()) <= segments(home)
    assert rows.items() >= all_rows(home, newest).items()


def test_segments_are_no_larger_than_set(home, monkeypatch):
    *_, last = nights(home, 5)
    rows = all_rows(home, last)
    plan = compaction.plan_compaction(home.store, now=NOW.timestamp(), most_rows=100)
    assert compaction.compact(home.store, plan, now=NOW.timestamp(), most_rows=4) == []
    assert len(segments(home)) == 4  # 14 rows
    assert max(home.store.segment_rows("fake", name) for name in segments(home)) == 4
    assert all_rows(home, last) == rows
    assert verify(home.store) == []


def test_content_that_was_embedded_twice_becomes_one_row(home):
    [one] = nights(home, 1)
    index, [mine] = home.store.read_index(*one.where), segments(home)
    keys, _ = home.store.segment_keys("fake", mine)
    n, rows = len(keys), home.store.rows("fake", mine)
    with home.store.segment_writer("fake") as writer:  # in another order
        for at in reversed(range(n)):
            writer.add(bytes(keys[at]).ljust(16, b"\0"), rows[at].astype(np.float32))
    [other] = segments(home) - {mine}
    table = index.table.to_pydict()
    table["segment"] = [other] * n
    table["row"] = [n - 1 - row for row in table["row"]]
    elsewhere = EmbeddingIndex(pa.table(table, schema=index.table.schema))
    home.store.write_index("dataset", "fake", "elsewhere", elsewhere)
    before = all_rows(home, one)
    grow_old(home)
    compacted(home)
    [joined] = segments(home)
    assert home.store.segment_rows("fake", joined) == n
    assert all_rows(home, one) == before
    places = [
        home.store.read_index("dataset", "fake", of).table.select(["segment", "row"]).to_pylist()
        for of in (one.manifest_fingerprint, "elsewhere")
    ]
    assert places[0] == places[1]
    assert verify(home.store) == []


@pytest.mark.slow
def test_a_compaction_that_is_killed_at_any_step_leaves_every_row_where_it_is_looked_for(home):
    history = nights(home, 4)
    template = home.place.saved()
    before = [all_rows(home, each) for each in history]
    at = 0
    while True:
        home.place.restore(template)
        killed = is_killed(compacted, home, at)
        assert verify(home.store) == []
        assert [all_rows(home, each) for each in history] == before
        if at % 5 == 0 or not killed:
            source = DirectorySource(home.images / "a")
            _, embedded = evaluate("dataset", source, FakeEmbedder(), home.store, home.warehouse)
            assert embedded.n_new == 0
            compacted(home)
            assert verify(home.store) == []
        if not killed:
            break
        at += 1
    assert at > 8


def test_a_damaged_segment_is_left_alone_and_told(home):
    nights(home, 4)
    path = home.place.root / f"embeddings/fake/{min(segments(home))}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    grow_old(home)
    project = replace(home.project, store=home.place.store())
    done = compact_store(project, NOW, apply=True)
    assert any("damaged" in problem for problem in done.problems)
    source = DirectorySource(home.images / "a")
    evaluation, _ = evaluate("dataset", source, FakeEmbedder(), home.place.store(), home.warehouse)
    assert evaluation.n_failed == 0
