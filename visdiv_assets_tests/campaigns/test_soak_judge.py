"""The judges of the soak: each tells what is wrong, and nothing else."""

import pytest

from visdiv_assets.notify.messages import BEGAN, ENDED
from visdiv_assets.quality.conditions import Condition
from visdiv_assets_tests.campaigns import soak_judge as judge
from visdiv_assets_tests.campaigns.soak_judge import (
    Evaluated,
    Kill,
    Memory,
    Partitions,
    Recorded,
    Run,
    Stands,
    Told,
    read_message,
)

FILE_BODY = "visdiv.yaml cannot be used\nlikely reason: line 3\nat: 2026-01-02 00:00 UTC"

FOREVER = float("inf")


def failed(findings):
    return [each.text for each in findings if each.failed]


def recorded(*began, dataset="a", condition="below_threshold"):
    return [Recorded(10.0 * at, dataset, condition, each) for at, each in enumerate(began)]


def told(at, began, text="", dataset="a", condition="below_threshold", recipient="me"):
    return Told(recipient, at, dataset, condition, began, text or f"{dataset} {began} {at}")


@pytest.mark.parametrize("more", ["", "\nscore: 0.2 (Good), threshold: 0.10\nlikely reason: fell"])
@pytest.mark.parametrize("gap", ["\n\n", "\r\n\r\n", "\n"])
def test_each_change_of_a_digest_is_read_whether_it_has_a_paragraph_or_a_line(more, gap):
    changes = [
        (name, condition.value, began)
        for name in ("a", "b.c")
        for condition in Condition
        for began in (True, False)
    ]
    lines = [
        f"{name} {(BEGAN if began else ENDED)[Condition(condition)]}{more}"
        for name, condition, began in changes
    ]
    title = f"visdiv: {len(changes)} changes in a, b.c"
    found, wrong = read_message("me", 1.0, title, gap.join(lines))
    assert [(each.dataset, each.condition, each.began) for each in found] == changes
    assert not wrong


def test_what_is_said_of_the_settings_file_is_read():
    found, wrong = read_message("me", 1.0, "visdiv: visdiv.yaml cannot be used", FILE_BODY)
    assert [(each.dataset, each.condition, each.began) for each in found] == [
        ("", "settings_broken", True)
    ]
    assert not wrong


def test_a_message_that_tells_of_fewer_changes_than_it_says_is_wrong():
    found, wrong = read_message("me", 1.0, "visdiv: 2 changes in a, b", "a has recovered")
    assert len(found) == 1
    assert "tells of 1 changes" in wrong


@pytest.mark.parametrize(
    ("newest", "problem"),
    [
        (Evaluated("a", 1, 12, 0, "new", 0.3), None),
        (None, "never evaluated"),
        (Evaluated("a", 1, 12, 0, "old", 0.3), "has changed since"),
        (Evaluated("a", 1, 11, 1, "new", 0.3), "are not 12 images"),
    ],
)
def test_an_evaluation_describes_its_source(newest, problem):
    latest = {"a": newest} if newest else {}
    found = failed(judge.judge_evaluations({"a": Stands(12, "new")}, latest))
    assert len(found) == (problem is not None)
    assert all(problem in each for each in found)


def test_a_source_that_cannot_be_looked_at_is_told():
    [text] = failed(judge.judge_evaluations({"a": Stands(error="gone")}, {}))
    assert "gone" in text


def partitions(*names, fault=""):
    return [
        Partitions(float(at), frozenset(each.split()), fault if at == 1 else "")
        for at, each in enumerate(names)
    ]


def test_partitions_may_come_late_and_go_when_they_are_not_registered():
    samples = partitions("b", "a b", "a b", "b", "b")
    registered = {"a": [(0, 2.5)], "b": [(0, FOREVER)]}
    assert not judge.judge_partitions(samples, registered)


def test_a_partition_lost_while_the_settings_were_broken_is_told_though_it_came_back():
    samples = partitions("a b", "b", "a b", fault="emptied")
    [text] = failed(judge.judge_partitions(samples, {"a": [(0, FOREVER)], "b": [(0, FOREVER)]}))
    assert "a was lost at 1 s while the settings were emptied" in text


def test_partitions_of_the_end_are_those_registered():
    found = failed(judge.judge_partitions(partitions("b"), {"a": [(0, FOREVER)]}))
    assert found == ["at the end there are none of a", "at the end there are still those of b"]


def run(status="SUCCESS", run_key="", parent="", run_id="12345678"):
    ended = status in ("SUCCESS", "FAILURE", "CANCELED")
    return Run(run_id, "evaluate_dataset", "a", status, ended, {"run_key": run_key}, parent)


def test_runs_have_ended_and_hold_nothing():
    assert not failed(judge.judge_runs([run(), run("FAILURE")], {"gpu": []}))
    found = failed(judge.judge_runs([run("STARTED")], {"gpu": ["12345678"]}))
    assert ["still STARTED" in found[0], "pool gpu is held" in found[1]] == [True, True]


def test_one_more_run_succeeds():
    assert not judge.judge_next_run("SUCCESS")
    assert failed(judge.judge_next_run("QUEUED"))
    assert failed(judge.judge_next_run(""))


def verdicts(alerts, words, kills=()):
    return judge.judge_recipients(alerts, words, ["me"], kills)


def test_each_alert_told_once_in_order_is_right():
    assert not verdicts(recorded(True, False, True), [told(1, True), told(2, False), told(3, True)])


def test_the_same_words_may_be_right_twice():
    alerts = recorded(True, False, True)
    assert not verdicts(alerts, [told(1, True, "x"), told(2, False, "y"), told(3, True, "x")])


def test_an_alert_that_is_not_told_is_missing_and_may_still_come():
    [finding] = verdicts(recorded(True, False), [told(1, True)])
    assert (finding.judge, finding.passing) == ("not told", True)


def test_an_alert_told_twice_is_wrong():
    [finding] = verdicts(recorded(True), [told(1, True, "x"), told(20, True, "x")])
    assert (finding.judge, finding.failed) == ("told twice", True)


def test_a_digest_that_is_told_twice_is_told_twice_and_not_in_another_order():
    words = [told(at, began, f"{began}") for at in (1, 20) for began in (True, False)]
    assert {each.judge for each in verdicts(recorded(True, False), words)} == {"told twice"}


def test_told_twice_around_a_kill_is_only_counted():
    words = [told(1, True, "x"), told(20, True, "x")]
    [finding] = verdicts(recorded(True), words, [Kill(3, "code server")])
    assert not finding.failed
    assert failed(verdicts(recorded(True), words, [Kill(19, "code server")]))
    assert failed(verdicts(recorded(True), words, [Kill(25, "code server")]))


def test_an_end_told_before_its_beginning_is_wrong():
    [finding] = verdicts(recorded(True, False), [told(1, False), told(2, True)])
    assert (finding.judge, finding.passing) == ("told wrongly", False)


def test_what_was_never_recorded_must_not_be_told():
    assert failed(verdicts([], [told(1, True)]))


def test_what_begins_twice_without_an_end_is_out_of_order():
    assert not judge.judge_order(recorded(True, False, True), {})
    assert failed(judge.judge_order(recorded(True, True), {}))
    assert failed(judge.judge_order(recorded(False), {}))


def test_a_drop_may_begin_again_since_its_end_is_never_told():
    assert not judge.judge_order(recorded(True, True, condition="dropped"), {})


def test_a_dataset_that_was_removed_may_begin_anew():
    assert not judge.judge_order(recorded(True, True), {"a": [5.0]})


def scores(*values):
    return [Evaluated("a", at, 12, 0, "f", each) for at, each in enumerate(values)]


def test_alerts_follow_the_scores():
    values = scores(0.3, 0.02, 0.01, 0.3)
    assert not judge.judge_scores(values, recorded(True, False), 0.1)
    assert failed(judge.judge_scores(values, recorded(True), 0.1))
    assert failed(judge.judge_scores(scores(0.3), recorded(True, False), 0.1))


def last_words(words, low):
    return failed(judge.judge_last_words(words, ["me"], low))


def test_the_last_word_is_true():
    assert not last_words([], set())
    assert not last_words([told(1, True), told(2, False)], set())
    assert not last_words([told(1, True)], {"a"})
    assert last_words([told(1, True)], set())
    assert last_words([], {"a"})
    assert last_words([told(1, True, condition="not_evaluated")], set())
    assert last_words([told(1, True, condition="not_evaluated")], {"b"})
    assert not last_words([told(1, True, condition="dropped")], set())


def life(*mib, end=0.0):
    return [Memory(end - 10 * (len(mib) - at), "daemon", 7, each) for at, each in enumerate(mib)]


def test_memory_that_grows_is_told_of_processes_that_live():
    steady, growing = [100.0] * 40, [100.0 + 5 * at for at in range(40)]
    assert not failed(judge.judge_memory(life(*steady), 0.0))
    assert failed(judge.judge_memory(life(*growing), 0.0))
    assert not failed(judge.judge_memory(life(*growing), 500.0))  # it was killed
    assert not failed(judge.judge_memory(life(*growing[:10]), 0.0))  # too short to tell


def test_a_fifth_more_or_a_few_megabytes_more_is_no_growth():
    assert not failed(judge.judge_memory(life(*[100.0] * 20, *[150.0] * 20), 0.0))
    assert not failed(judge.judge_memory(life(*[1000.0] * 20, *[1200.0] * 20), 0.0))


def night(*runs):
    return failed(judge.judge_night(runs, ["a"], "2026-01-02"))


def test_a_night_has_one_run_of_each_dataset():
    key = "nightly:a:2026-01-02"
    assert not night(run(run_key=key))
    assert not night(run("FAILURE", key), run(run_key=key, parent="it"))
    assert "no run" in night(run(run_key="nightly:a:2026-01-01"))[0]
    assert "several" in night(run(run_key=key), run(run_key=key))[0]


def test_the_table_is_short():
    findings = verdicts([], [told(at, True, dataset=f"d{at}") for at in range(30)])
    assert judge.table(findings).splitlines()[-1].endswith("… and 18 more")
