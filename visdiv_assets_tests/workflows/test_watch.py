"""From what happens to a dataset to its alerts, each exactly once, and to the runs to ask for."""

import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pytest

from visdiv_assets.quality.conditions import Condition, State
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.looking import Look
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.state.looks import requests, seen
from visdiv_assets.warehouse.state.outbox import SETTINGS_FILE, all_active_conditions, note_states
from visdiv_assets.warehouse.state.outbox import alerts as recorded
from visdiv_assets.warehouse.state.registry import (
    confirm_removal,
    confirmed_removals,
    register,
    registered_at,
    unregister,
)
from visdiv_assets.workflows.judge import judge_dataset
from visdiv_assets.workflows.watch import (
    due_tonight,
    note_failure,
    note_look,
    note_settings,
    note_stale,
    note_unreachable,
    wanted_evaluations,
)
from visdiv_assets_tests.notify.test_delivery import NOW, Service, evaluate

ROOT = Path(__file__).parents[2]
FAIR = {"basis": "corrected", "n_images": 1000, "n_distinct": 1000}


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def told(service: Service) -> list[tuple[str, str, bool]]:
    """All alerts, oldest first."""
    rows = reversed(recorded(service.state, 1000))
    return [(alert.dataset, alert.condition, alert.began) for alert, _ in rows]


def fair(score: float, width: float = 0.03) -> dict[str, object]:
    return {
        **FAIR,
        "corrected_score": score,
        "corrected_low": score - width,
        "corrected_high": score + width,
    }


# --- scores ---


def test_a_recovery_is_told_once_the_interval_lies_above_the_threshold(service):
    for score, is_told in ((0.2, 1), (0.31, 1), (0.32, 1), (0.34, 2)):
        evaluate(service, 0.1, **fair(score))
        assert len(told(service)) == is_told


def test_a_recovery_is_told_once_the_score_has_stayed_above_for_long_enough(service):
    evaluate(service, 0.1, evaluated_at=NOW, **fair(0.29))
    for night in (1, 8, 14):
        evaluate(service, 0.1, evaluated_at=NOW + timedelta(days=night), **fair(0.31))
        assert len(told(service)) == 1
    evaluate(service, 0.1, evaluated_at=NOW + timedelta(days=15), **fair(0.31))
    assert told(service)[1] == ("birds", "below_threshold", False)


def test_a_threshold_that_is_lowered_below_the_score_is_a_recovery_at_once(service):
    for threshold in (0.30, 0.25):
        evaluate(service, 0.1, threshold=threshold, **fair(0.26))
    assert told(service) == [
        ("birds", "below_threshold", True),
        ("birds", "below_threshold", False),
    ]


def test_a_dataset_that_loses_most_of_its_images_is_told_of_and_so_is_their_return(service):
    for n_images in (1250, 1250, 100, 100, 1250):
        evaluate(service, 0.5, n_listed=n_images, n_images=n_images, corrected_score=None)
    lost, back = (alert for alert, _ in reversed(recorded(service.state)))
    assert (lost.condition, lost.began) == ("images_lost", True)
    assert lost.reason == "the dataset has 100 images; usually it has 1,250"
    assert (back.condition, back.began) == ("images_lost", False)


# --- each evaluation is judged once ---


def test_an_evaluation_whose_process_died_before_it_was_judged_is_judged_by_the_next(
    service, monkeypatch
):
    evaluate(service, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr("visdiv_assets_tests.notify.test_delivery.derive_alerts", lambda *_: [])
        evaluate(service, 0.1)
        evaluate(service, 0.1, dataset="cats")
    assert told(service) == []
    evaluate(service, 0.9)
    assert told(service) == [
        ("birds", "below_threshold", True),
        ("cats", "below_threshold", True),
        ("birds", "below_threshold", False),
    ]


@pytest.mark.slow
def test_many_processes_judge_each_evaluation_once(service):
    code = (
        "import sys\n"
        "from visdiv_assets_tests.notify.test_delivery import *\n"
        "for score in (0.1, 0.9) * 2:\n"
        "    evaluate(Service(Path(sys.argv[1])), score, dataset=sys.argv[2],\n"
        "             evaluation_id=f'{sys.argv[2]} {next(counter)}')\n"
    )
    evaluate(service, 0.5)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(service.root), name], cwd=ROOT)
        for name in ("a", "b", "c")
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(told(service)) == 12
    for name in ("a", "b", "c"):
        began = [began for dataset, _, began in told(service) if dataset == name]
        assert began == [True, False] * 2


def test_results_that_are_replaced_by_an_older_copy_are_judged_from_there(service):
    evaluate(service, 0.5)
    older = service.results.path.read_bytes()
    evaluate(service, 0.5)
    evaluate(service, 0.5)
    service.results.path.write_bytes(older)
    evaluate(service, 0.1)
    assert told(service) == [("birds", "below_threshold", True)]


def test_a_state_that_is_lost_does_not_tell_all_of_the_past_again(service):
    for score in (0.1, 0.9, 0.1, 0.9):
        evaluate(service, score)
    for file in service.root.glob("state.sqlite*"):
        file.unlink()
    evaluate(service, 0.9)
    assert told(service) == []
    evaluate(service, 0.1)
    assert told(service)[0] == ("birds", "below_threshold", True)


def test_the_outbox_of_an_older_version_is_taken_over_once(service):
    with duckdb.connect(str(service.results.path)) as connection:
        for script in sorted((ROOT / "visdiv_assets/warehouse/migrations").glob("*.sql"))[:8]:
            if script.name.startswith("0001"):
                connection.execute(
                    "CREATE TABLE schema_version (version INTEGER, applied_at TIMESTAMPTZ)"
                )
            connection.execute(script.read_text())
            connection.execute(
                "INSERT INTO schema_version VALUES (?, now())", [int(script.name[:4])]
            )
        connection.execute(
            "INSERT INTO conditions VALUES ('birds', 'below_threshold', true, now())"
        )
        connection.execute(
            "INSERT INTO alerts VALUES ('x', now(), 'birds', 'below_threshold', true, 'why', 0.1, "
            "NULL, 0.3, 'Low', NULL), ('y', now(), 'cats', 'stale', true, '', NULL, NULL, NULL, "
            "NULL, NULL)"
        )
        connection.execute("INSERT INTO deliveries VALUES ('x', 'abcd', 1, now(), now(), NULL)")
    evaluate(service, 0.1)  # still below: nothing new
    assert sorted(told(service)) == [("birds", "below_threshold", True), ("cats", "stale", True)]
    delivered = {alert.alert_id: len(done) for alert, done in recorded(service.state)}
    assert delivered == {"x": 1, "y": 0}
    assert service.results.old_outbox() == {}
    evaluate(service, 0.9)
    assert told(service)[-1] == ("birds", "below_threshold", False)


# --- registrations ---


def test_a_dataset_registered_again_begins_anew(service):
    register(service.state, ["birds"], NOW)
    for score in (0.5, 0.5, 0.5, 0.5, 0.5, 0.1):
        evaluate(service, score, n_listed=1000)
    assert told(service)[0] == ("birds", "below_threshold", True)
    before = len(told(service))
    unregister(service.state, "birds", NOW)
    register(service.state, ["birds"], NOW)
    evaluate(service, 0.12, n_listed=10)
    # Below, which it never was; no drop, and no images lost, by comparison with another dataset.
    assert told(service)[before:] == [("birds", "below_threshold", True)]


def test_what_waits_for_a_dataset_that_was_removed_is_dropped(service):
    register(service.state, ["birds"], NOW)
    evaluate(service, 0.1)
    unregister(service.state, "birds", NOW)
    assert all_active_conditions(service.state) == {}
    assert registered_at(service.state) == {}


def test_a_removal_is_confirmed_until_the_dataset_is_registered_again(service):
    register(service.state, ["birds", "cats"], NOW)
    confirm_removal(service.state, ["birds"])
    register(service.state, ["birds", "cats"], NOW)
    assert confirmed_removals(service.state) == {"birds"}
    unregister(service.state, "birds", NOW)
    register(service.state, ["birds"], NOW)
    assert confirmed_removals(service.state) == set()


# --- time ---


def test_the_newest_evaluation_is_the_one_that_was_recorded_last_whatever_the_clock_said(service):
    evaluate(service, 0.5, evaluated_at=datetime(2031, 1, 1, tzinfo=UTC))
    evaluate(service, 0.1)
    assert [each.diversity_score for each in service.results.latest_evaluations()] == [0.1]
    assert told(service) == [("birds", "below_threshold", True)]


def test_an_evaluation_of_the_future_is_stale_and_says_that_a_clock_is_wrong(service):
    evaluate(service, 0.5, evaluated_at=datetime(2031, 1, 1, tzinfo=UTC))
    assert list(note_stale(["birds"], service.state, NOW)) == ["birds"]
    [(alert, _)] = recorded(service.state)
    assert alert.reason == (
        "the dataset was last evaluated at 2031-01-01 00:00 UTC, which is still to come; a clock "
        "was wrong then, or is wrong now; put it right, then evaluate again"
    )
    evaluate(service, 0.5, evaluated_at=NOW)
    assert told(service)[-1] == ("birds", "stale", False)


# --- failed runs ---


def test_a_failure_that_is_older_than_the_newest_evaluation_is_no_news(service):
    evaluate(service, 0.5, evaluated_at=NOW)
    note_failure("birds", "no", service.state, failed_at=NOW - timedelta(minutes=1))
    assert told(service) == []
    note_failure("birds", "no", service.state, failed_at=NOW + timedelta(minutes=1))
    assert told(service) == [("birds", "not_evaluated", True)]


def test_a_failed_analysis_hides_no_failed_evaluation(service):
    evaluate(service, 0.5)
    for condition in (Condition.NOT_ANALYZED, Condition.NOT_EVALUATED):
        note_failure("birds", "no", service.state, condition=condition)
    assert told(service) == [("birds", "not_analyzed", True), ("birds", "not_evaluated", True)]


# --- settings ---


def test_settings_that_cannot_be_used_are_told_once_and_so_is_their_mending(service):
    for _ in range(3):
        note_settings("line 3: no", {}, (), service.state)
    for _ in range(3):
        note_settings(None, {"cats": "THRESHOLD is not set"}, ["birds"], service.state)
    note_settings(None, {}, ["birds", "cats"], service.state)
    assert told(service) == [
        (SETTINGS_FILE, "settings_broken", True),
        ("cats", "settings_broken", True),
        (SETTINGS_FILE, "settings_broken", False),
        ("cats", "settings_broken", False),
    ]


# --- looks ---

SOURCE = SourceSettings(uri="/data/birds")


def look(
    service: Service, now: float, fingerprint: str | None = None, *, source: SourceSettings = SOURCE
) -> None:
    error = None if fingerprint else "it does not answer"
    found = Look("birds", source, fingerprint, error, 0.1)
    note_look(found, Store(service.root), service.state, now, 60)


def wanted(service: Service, now: float, in_flight: tuple[str, ...] = ()) -> list[int]:
    found = wanted_evaluations(
        {"birds": SOURCE}, in_flight, Store(service.root), service.state, now, 60
    )
    return [each.requests for each in found]


def test_a_source_that_cannot_be_looked_at_for_a_while_is_told_once_and_so_is_its_return(service):
    for minute in range(20):
        look(service, NOW.timestamp() + 60 * minute)
        note_unreachable(["birds"], service.state, NOW + timedelta(minutes=minute))
        assert len(told(service)) == (minute >= 15)
    look(service, NOW.timestamp() + 1200, "f")
    for _ in range(2):
        note_unreachable(["birds"], service.state, NOW + timedelta(minutes=20))
    assert told(service) == [("birds", "unreachable", True), ("birds", "unreachable", False)]


def test_a_source_that_nobody_watches_any_more_is_not_told_to_be_back(service):
    look(service, 0)
    note_unreachable(["birds"], service.state, NOW)
    note_unreachable([], service.state, NOW)
    assert told(service) == [("birds", "unreachable", True)]
    assert "unreachable" not in all_active_conditions(service.state).get("birds", {})


def test_a_change_is_asked_for_until_it_is_scored_with_growing_pauses(service):
    look(service, 0, "f")
    assert wanted(service, 0) == []  # it has not settled
    asked = []
    for minute in (*range(1, 35), *range(62, 24 * 60, 10)):
        look(service, 60 * minute, "f")
        asked += [minute] * len(wanted(service, 60 * minute))
    assert asked[:5] == [1, 2, 3, 8, 33]
    assert np.diff(asked).max() <= 360 + 10
    Store(service.root).root.joinpath("manifests/birds").mkdir(parents=True)
    Store(service.root).name_latest("birds", "f")
    look(service, 24 * 3600, "f")
    assert wanted(service, 48 * 3600) == []
    assert seen(service.state) == {}


def test_the_pause_before_asking_again_begins_when_the_run_has_ended(service):
    look(service, 0, "f")
    look(service, 60, "f")
    assert wanted(service, 60) == [1]
    assert wanted(service, 61) == [2]  # it was not launched
    for minute in range(2, 180, 20):  # a run of three hours, which dies
        assert wanted(service, 60 * minute, ("birds",)) == []
    assert wanted(service, 60 * 162 + 59) == []
    assert wanted(service, 60 * 163) == [3]


def test_another_change_or_another_source_is_asked_for_at_once(service):
    for fingerprint in ("f", "g"):
        look(service, 0, fingerprint)
        look(service, 60, fingerprint)
        assert wanted(service, 60) == [1]
    other = SourceSettings(uri="/data/other")
    look(service, 100, "g", source=other)
    assert wanted(service, 200) == []  # of another source, as long as the settings name the old one
    assert requests(service.state)["birds"].fingerprint == "g"


def test_an_evaluation_that_failed_is_asked_for_again_though_its_source_has_not_changed(service):
    Store(service.root).root.joinpath("manifests/birds").mkdir(parents=True)
    Store(service.root).name_latest("birds", "f")
    look(service, 0, "f")
    assert wanted(service, 0) == []
    note_failure("birds", "the disk is full", service.state)
    asked = [minute for minute in range(40) if wanted(service, 60 * minute)]
    assert asked == [1, 6, 31]
    look(service, 60 * 40)  # it cannot be looked at: no evaluation could succeed
    assert wanted(service, 3600 * 24) == []
    look(service, 3600 * 24, "f")
    assert wanted(service, 3600 * 24, ("birds",)) == []
    ended = State(Condition.NOT_EVALUATED, active=False)
    note_states(service.state, "birds", [ended], NOW)
    assert wanted(service, 3600 * 72) == []
    assert requests(service.state) == {}


# --- nights ---

NIGHT = date(2026, 3, 10)
BEGUN = datetime(2026, 3, 10, 2, tzinfo=UTC)


def tonight(
    service: Service, hours: float, names: tuple[str, ...] = ("a",), there: tuple[str, ...] = ()
) -> list[str]:
    moment = BEGUN + timedelta(hours=hours)
    return due_tonight(names, NIGHT, BEGUN, moment, there, service.state, moment)


def test_every_dataset_is_asked_for_once_a_night_however_late(service):
    assert tonight(service, 6) == ["a"]
    assert tonight(service, 6.25, there=("a",)) == []
    assert tonight(service, 6.25, ("a", "busy"), ("a",)) == ["busy"]


def test_a_request_that_was_lost_on_its_way_is_made_again_and_not_for_ever(service):
    asked = [tonight(service, quarter / 4) for quarter in range(80)]
    assert [quarter for quarter, names in enumerate(asked) if names] == [0, 1, 2]


def test_a_dataset_that_was_registered_tonight_waits_for_the_next_night(service):
    register(service.state, ["a"], BEGUN + timedelta(hours=1))
    assert tonight(service, 2) == []
    register(service.state, ["b"], BEGUN - timedelta(hours=1))
    assert tonight(service, 2, ("a", "b")) == ["b"]


def test_a_dataset_that_was_away_when_the_night_began_has_its_night_late(service):
    register(service.state, ["birds"], BEGUN - timedelta(hours=1))
    evaluate(service, 0.5, evaluated_at=BEGUN - timedelta(minutes=30))
    unregister(service.state, "birds", BEGUN - timedelta(minutes=5))
    register(service.state, ["birds"], BEGUN + timedelta(hours=1))
    assert tonight(service, 2, ("birds",)) == ["birds"]
    evaluate(service, 0.5, evaluated_at=BEGUN + timedelta(hours=3))
    assert tonight(service, 4, ("birds",)) == []


def test_nothing_is_compared_before_the_first_night(service):
    register(service.state, ["a"], BEGUN + timedelta(hours=1))
    assert tonight(service, 2, ("",)) == []
    register(service.state, ["b"], BEGUN - timedelta(hours=1))
    assert tonight(service, 2, ("",)) == [""]


# --- readers of the state ---


def test_readers_of_the_state_wait_for_nobody(service):
    evaluate(service, 0.1)
    with service.state.transaction() as connection:
        connection.execute("DELETE FROM alerts")
        assert len(recorded(service.state)) == 1  # not committed yet
    assert recorded(service.state) == []


def test_writers_of_the_state_take_turns(service):
    def change(name: str) -> None:
        for _ in range(20):
            note_settings("no", {}, (), service.state)
            note_settings(None, {}, (), service.state)

    threads = [threading.Thread(target=change, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    began = [began for _, _, began in told(service)]
    assert began == [True, False] * (len(began) // 2)


def test_checks_compare_with_evaluations_of_the_same_registration_only(service, monkeypatch):
    class Kept(Store):
        def index_of(self, *_):
            return type("Index", (), {"n_images": 100, "n_failed": 0})()

        def read_moments(self, *_):
            return type("Moments", (), {"n": 100})()

        def read_norm_error(self, *_):
            return 0.0

        def manifest_length(self, *_):
            return 100

    for n_listed in (1000, 1000, 100):
        evaluate(service, 0.5, n_listed=n_listed)
    kept = Kept(service.root)
    verdicts = judge_dataset("birds", 0.3, kept, service.results)
    assert not verdicts["images_lost"].passed
    verdicts = judge_dataset("birds", 0.3, kept, service.results, after_evaluation=2)
    assert verdicts["images_lost"].passed
