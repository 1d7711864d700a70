"""Images that another dataset has are found with their counterparts."""

import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import Settings
from visdiv_assets.workflows.leakage import (
    FAULTY,
    benchmarks_of,
    comparable,
    find_overlap,
    leakage_of,
)
from visdiv_assets.workflows.project import Project


def test_images_that_another_dataset_has_are_found_with_their_counterpart(leaky):
    birds, bench = leaky.evaluate("birds"), leaky.evaluate("bench")
    found = find_overlap(birds, bench, leaky.store, threshold=0.95)
    rows = found.images.select(["image_id", "other_image_id", "exact"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("003.png", "x.png", True),
        ("007.png", "y.png", False),
        ("another of 003.png", "x.png", True),
        ("copy of 003.png", "x.png", True),
    ]
    assert found.counts == {0.90: 4, 0.95: 4}
    assert (found.n_exact, found.n_other) == (3, 2)
    assert found.rate == pytest.approx(4 / 74)
    assert found.other_rate == pytest.approx(2 / 7)
    back = find_overlap(bench, birds, leaky.store, threshold=0.95)
    assert (len(back.images), back.n_other) == (found.n_other, len(found.images))


def test_datasets_of_different_models_are_not_compared(leaky):
    birds, bench = leaky.evaluate("birds"), leaky.evaluate("bench", model="another")
    with pytest.raises(
        VisdivError, match="different models, so they cannot be compared: fake, another"
    ):
        find_overlap(birds, bench, leaky.store, threshold=0.95)


def test_what_cannot_be_compared_has_a_reason(leaky):
    birds = leaky.evaluate("birds")
    leaky.evaluate("bench", model="another")
    others, reasons = comparable(birds, ["birds", "bench", "never"], leaky.warehouse)
    assert others == []
    assert reasons == {
        "bench": "it was embedded with another model, another",
        "never": "it has never been evaluated",
    }
    bench = leaky.evaluate("bench")
    assert comparable(birds, ["bench"], leaky.warehouse) == ([bench], {})


def test_benchmarks_are_those_of_the_role_and_leak_into_none():
    settings = Settings.model_validate(
        {"datasets": {"a": {"source": "a"}, "b": {"source": "b", "role": "benchmark"}}}
    )
    assert benchmarks_of(settings, "a") == ["b"]
    assert benchmarks_of(settings, "b") == []
    assert benchmarks_of(settings, "not-registered") == ["b"]


def test_a_benchmark_whose_settings_are_wrong_is_not_compared_and_that_is_told(leaky):
    leaky.evaluate("birds")
    leaky.evaluate("bench")
    content = {"datasets": {"birds": {"source": "birds"}}}
    settings = Settings.model_validate(content)
    settings.note_faults({"bench": "wrong", "other": "wrong"}, {"bench"})
    assert benchmarks_of(settings, "birds") == ["bench"]
    project = Project(settings, leaky.store, leaky.warehouse)
    assert leakage_of(project.dataset("birds")).not_compared == {"bench": FAULTY}
