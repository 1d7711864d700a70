"""What counts as one piece of evidence, from the settings to the results and what they say."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from visdiv_assets.embedding.decoding import Decoding
from visdiv_assets.errors import VisdivError
from visdiv_assets.quality.conditions import Condition
from visdiv_assets.settings.model import ColumnSlices, SamplingUnit
from visdiv_assets.sources import pieces
from visdiv_assets.sources.opening import open_source
from visdiv_assets.spectral.corrected import ESTIMATOR, corrected
from visdiv_assets.spectral.sampling import units_of
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.duplicates import find_duplicates
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.judge import judge_dataset, states_of
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_image

COLUMN = ColumnSlices(column="clip")


@pytest.fixture
def clips(tmp_path):
    """240 images in 60 folders; in a list, 80 clips of three images, in no order of folders."""
    rows = ["path,clip"]
    for number in range(240):
        name = f"images/{number % 60:02}/{number:03}.png"
        write_image(tmp_path / name, seed=number)
        rows.append(f"{name},clip {number // 3}")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    return SimpleNamespace(
        source=str(tmp_path / "images.csv"),
        store=Store(tmp_path / "store"),
        warehouse=Warehouse(tmp_path / "store/visdiv.duckdb"),
    )


def score(home, unit="near-duplicates", **options):
    evaluation, _ = evaluate(
        "dataset",
        open_source(home.source),
        FakeEmbedder(),
        home.store,
        home.warehouse,
        sampling_unit=unit,
        **options,
    )
    return evaluation


@pytest.mark.parametrize(
    ("unit", "name", "n"),
    [("row", "row", 240), ("folder", "folder", 60), (COLUMN, "column clip", 80)],
    ids=["row", "folder", "column"],
)
def test_the_settings_say_what_a_sampling_unit_is(clips, unit, name, n):
    found = score(clips, unit)
    assert (found.sampling_unit, found.estimator) == (name, ESTIMATOR)
    assert found.n_units == pytest.approx(n)
    assert found == clips.warehouse.history("dataset")[-1]
    sample = clips.store.read_sample(*found.where)
    assert len(np.unique(units_of(sample))) == n
    assert corrected(sample).score == found.corrected_score


@pytest.mark.parametrize("unit", ["folder", COLUMN], ids=["folder", "column"])
def test_units_do_not_depend_on_how_much_of_an_index_is_read_at_a_time(clips, unit, monkeypatch):
    found = []
    for piece in (131_072, 1, 7):
        monkeypatch.setattr(pieces, "PIECE_ROWS", piece)
        shutil.rmtree(clips.store.root / "moments", ignore_errors=True)
        evaluation = score(clips, unit)
        found.append(clips.store.read_sample(*evaluation.where).units)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_another_unit_is_noticed_where_no_image_has_changed(clips):
    first, second, third = score(clips, "row"), score(clips, "folder"), score(clips, "row")
    assert first.n_units == third.n_units != second.n_units
    assert first.diversity_score == second.diversity_score  # to the last bit
    assert first.corrected_score == third.corrected_score


def test_an_image_without_a_value_is_one_by_itself_but_a_column_that_nobody_has_is_an_error(clips):
    lines = Path(clips.source).read_text().splitlines()
    some = [line if number % 2 else f"{line.split(',')[0]}," for number, line in enumerate(lines)]
    Path(clips.source).write_text("\n".join([lines[0], *some[1:]]))
    assert score(clips, COLUMN).n_units == pytest.approx(240**2 / (40 * (2**2 + 1) + 40 * 3))
    with pytest.raises(VisdivError, match="no image of dataset has a value in the column album"):
        score(clips, ColumnSlices(column="album"))


def test_slices_have_the_units_of_the_whole(clips):
    found = score(clips, COLUMN, slices="folder")
    parts = clips.store.read_slices(*found.where)
    whole = clips.store.read_sample(*found.where)
    units = dict(zip(whole.keys.tolist(), whole.units.tolist(), strict=True))
    assert len(parts) > 1
    for part in parts.values():
        assert [units[key] for key in part.keys.tolist()] == part.units.tolist()


@pytest.mark.parametrize("wrong", ["rows", "", {"column": 3}, {"columns": "clip"}, ["row"], None])
def test_another_unit_is_refused(wrong):
    with pytest.raises(ValidationError, match="use near-duplicates, row, folder, or"):
        TypeAdapter(SamplingUnit).validate_python(wrong)


def test_scores_of_another_unit_or_estimator_are_no_history(clips):
    earlier = [replace(score(clips, "row"), corrected_score=0.9, corrected_low=0.89)] * 6
    now = score(clips, "folder")
    older = [replace(each, estimator=1, sampling_unit=None) for each in earlier]
    for history in (earlier, older):
        states = {each.condition: each for each in states_of(now, history, 0.0)}
        assert not states[Condition.DROPPED].active
    alike = [replace(each, sampling_unit="folder") for each in earlier]
    states = {each.condition: each for each in states_of(now, alike, 0.0)}
    assert states[Condition.DROPPED].active is (now.corrected_high < 0.89)


def test_a_new_estimator_is_told_as_the_reason(clips):
    now = score(clips)
    before = replace(now, estimator=1, sampling_unit=None)
    [below] = [each for each in states_of(now, [before], 1.0) if each.active]
    assert "the corrected score is estimated in a new way" in below.reason
    [below] = [each for each in states_of(score(clips, "row"), [now], 1.0) if each.active]
    assert "the sampling unit is now row" in below.reason


def test_few_images_many_times_are_judged_as_they_are(tmp_path):
    for number in range(60):
        write_image(tmp_path / f"images/{number:03}.png", seed=number % 5)
    home = SimpleNamespace(
        source=str(tmp_path / "images"),
        store=Store(tmp_path / "store"),
        warehouse=Warehouse(tmp_path / "store/visdiv.duckdb"),
    )
    found = score(home)
    assert (found.corrected_score, found.rating) == (None, "few images, many times")
    assert found.is_one_many_times
    for threshold in (0.0, 1.0):
        states = {each.condition: each.active for each in states_of(found, [], threshold)}
        assert states[Condition.BELOW_THRESHOLD] is (found.diversity_score < threshold)
    verdicts = judge_dataset("dataset", 1.0, home.store, home.warehouse)
    below, verdict = verdicts["score_above_threshold"], verdicts["not_one_image"]
    assert (below.passed, below.severity) == (False, "ERROR")
    assert below.finding.startswith("these are few images, many times: the diversity score as it")
    assert (verdict.passed, verdict.severity) == (False, "WARN")
    assert verdict.finding == "60 images are about 5 different ones, many times over"


def test_where_both_readings_differ_a_sentence_says_so(clips):
    found = score(clips, "folder")
    apart = replace(found, corrected_score=0.8, corrected_low=0.77, corrected_high=0.83)
    told = replace(apart, other_score=0.47, other_low=0.46, other_high=0.48).two_readings
    assert told == "0.47 as it is; 0.80 if a folder is one piece of evidence"
    assert replace(found, sampling_unit=None).two_readings == ""


@pytest.mark.parametrize("unit", ["row", "folder", COLUMN])
def test_the_scores_before_and_after_removing_duplicates_are_of_one_kind(clips, unit):
    evaluation, source = score(clips, unit), open_source(clips.source)
    found = find_duplicates(evaluation, clips.store, source, Decoding(), threshold=0.9999)
    assert not found.near_clusters
    before, after = found.before.corrected, found.after.corrected
    assert (before.score, before.low, before.high) == (after.score, after.low, after.high)


def test_what_is_nearly_one_image_is_judged_as_it_is(clips):
    alike = replace(
        score(clips), corrected_score=None, n_units=100.0, spread=0.3, diversity_score=0.1
    )
    assert alike.many_times_score == 0.1
    assert replace(alike, spread=0.8).many_times_score is None
    assert replace(alike, n_units=30.0).many_times_score is None
