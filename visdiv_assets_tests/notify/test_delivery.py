"""Alerts reach real services on loopback, each once, whatever fails on the way."""

import itertools
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.notify.delivery import Target, deliver_due
from visdiv_assets.notify.messages import compose
from visdiv_assets.quality.conditions import Condition, State
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.judge import note_failure, note_stale, states_of
from visdiv_assets_tests.notify.receivers import smtp_server, webhook

NOW = datetime(2026, 1, 1, tzinfo=UTC)
URL = "http://dagster.example:3000"
counter = itertools.count()


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "visdiv.duckdb")


def evaluate(warehouse: Warehouse, score: float, dataset: str = "birds", **changes: object):
    """Record an evaluation as a run does, with the conditions that follow; threshold 0.30."""
    number = next(counter)
    values = {
        "evaluation_id": f"e{number}",
        "dataset": dataset,
        "evaluated_at": NOW + timedelta(seconds=number),
        "run_id": f"run-{number}",
        "model_id": "model",
        "n_images": 100,
        "n_failed": 0,
        "dimension": 512,
        "effective_rank": 1.0,
        "participation_ratio": 1.0,
        "diversity_score": score,
        "rating": "Low",
        "stars": 2,
        "manifest_fingerprint": "f",
        "seconds": 1.0,
        "n_distinct": 100,
        **changes,
    }
    evaluation = Evaluation(**values)
    states = states_of(evaluation, warehouse.history(dataset), 0.30)
    return warehouse.record(evaluation, np.ones(512), states)


def deliver(warehouse: Warehouse, *urls: str, now: datetime = NOW + timedelta(days=1)):
    return deliver_due(warehouse, [Target(url) for url in urls], dagster_url=URL, now=now)


def test_falling_below_and_recovering_are_told_once_each(warehouse):
    with webhook() as hook:
        for score in (0.5, 0.2, 0.1, 0.2, 0.4, 0.5):
            evaluate(warehouse, score)
            deliver(warehouse, hook.url)
            deliver(warehouse, hook.url)
        assert hook.titles == [
            "visdiv: birds fell below its threshold",
            "visdiv: birds has recovered",
        ]


FAIR = {"basis": "corrected", "corrected_low": 0.1101, "corrected_high": 0.1404}


def test_a_message_says_all_that_one_needs_to_act(warehouse):
    evaluate(warehouse, 0.4, corrected_score=0.5, **FAIR)
    changes = {"n_images": 300, "n_distinct": 50, "corrected_score": 0.1234}
    [alert] = evaluate(warehouse, 0.1, **changes, **FAIR)
    evaluate(warehouse, 0.9, corrected_score=0.1, **FAIR)  # later; not what the alert is about
    with webhook() as hook:
        deliver(warehouse, hook.url)
        [body] = hook.received
    for part in (
        "birds fell below its threshold",
        "\nscore: 0.1234 (Low), before: 0.5000, threshold: 0.30\n",
        "\n95 % interval: 0.110 to 0.140, plain score: 0.1000\n",
        "250 of 300 images are exact copies of others",
        "200 more images than before",
        f"{URL}/runs/{alert.run_id}",
    ):
        assert part in body["message"]


def test_a_dataset_judged_by_its_plain_score_is_told_of_with_both_scores(warehouse):
    evaluate(warehouse, 0.2)
    evaluate(warehouse, 0.5)
    fair = {"corrected_score": 0.25, "corrected_low": 0.2, "corrected_high": 0.3}
    evaluate(warehouse, 0.1, dataset="cats", **fair)
    with webhook() as hook:
        deliver(warehouse, hook.url)
        message = hook.received[0]["message"]
    for part in (
        "\nplain score: 0.2000, threshold: 0.30\ncorrected for size: too few to tell\n",
        "\nplain score: 0.1000, threshold: 0.30\n"
        "corrected for size: 0.2500 (Low), 95 % interval: 0.200 to 0.300\n",
    ):
        assert part in message


def test_alerts_go_by_mail_too(warehouse):
    evaluate(warehouse, 0.1)
    with smtp_server() as (url, messages):
        [report] = deliver(warehouse, url)
        assert report.error is None
        [message] = messages
    assert message["subject"] == "visdiv: birds fell below its threshold"
    texts = [part.get_payload(decode=True) for part in message.walk() if not part.is_multipart()]
    assert "threshold: 0.30" in b"".join(texts).decode()


def test_many_at_once_make_one_message(warehouse):
    for number in range(5):
        evaluate(warehouse, 0.1, dataset=f"set{number}")
    with webhook() as hook:
        deliver(warehouse, hook.url)
        assert hook.titles == ["visdiv: 5 changes in set0, set1, set2 and 2 more"]
        assert all(f"set{number} fell below" in hook.received[0]["message"] for number in range(5))


def test_more_than_a_service_takes_is_told_in_a_line_each_and_no_more_lines_than_fit(warehouse):
    state = State(Condition.NOT_EVALUATED, active=True, reason="the disk is gone")
    for number in range(20):
        warehouse.change_conditions(f"set{number:02}", [state], NOW)
    due = warehouse.take_due_alerts(["x"], NOW + timedelta(days=1))["x"]
    whole = compose(due, URL).body
    assert whole.count("likely reason: the disk is gone") == 20
    for longest in (160, 1000, len(whole) - 1, len(whole)):
        title, body = compose(due, URL, longest)
        assert title.startswith("visdiv: 20 changes in ")
        assert len(body) <= longest
        told = body.count("could not be evaluated")
        if told < 20:
            assert body.endswith(f"\n… and {20 - told} more; run `visdiv alerts list`")
            assert longest - len(body) < 80  # as many as fit
    [first, *_] = due
    assert len(compose([first], URL, 50).body) == 50


def test_a_target_knows_how_much_its_service_takes():
    assert Target("json://127.0.0.1/x").longest == 32_768
    assert Target("discord://1234567890123456789/" + "a" * 64).longest == 2000


def test_while_a_service_is_down_nothing_is_lost_and_nothing_doubled(warehouse):
    now = NOW + timedelta(days=1)
    with webhook() as hook, webhook() as other:
        hook.down = True
        evaluate(warehouse, 0.1)
        [failed, fine] = deliver(warehouse, hook.url, other.url, now=now)
        assert failed.error
        assert fine.error is None
        # Not before its time, and the service that works is not told again.
        assert deliver(warehouse, hook.url, other.url, now=now + timedelta(seconds=14)) == []
        evaluate(warehouse, 0.9)
        for seconds in range(15, 600, 45):
            deliver(warehouse, hook.url, other.url, now=now + timedelta(seconds=seconds))
        assert 3 <= hook.refused <= 8
        hook.down = False
        for hours in (2, 3):
            deliver(warehouse, hook.url, other.url, now=now + timedelta(hours=hours))
        assert hook.titles == ["visdiv: 2 changes in birds"]
        assert other.titles == [
            "visdiv: birds fell below its threshold",
            "visdiv: birds has recovered",
        ]


def test_a_process_killed_between_evaluation_and_delivery_loses_nothing(warehouse):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from visdiv_assets.warehouse.warehouse import Warehouse\n"
        "from visdiv_assets_tests.notify.test_delivery import evaluate\n"
        "evaluate(Warehouse(Path(sys.argv[1])), 0.1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(warehouse.path)],
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ},
    )
    assert killed.returncode == -signal.SIGKILL
    with webhook() as hook:
        deliver(warehouse, hook.url)
        deliver(warehouse, hook.url)
        assert hook.titles == ["visdiv: birds fell below its threshold"]


def test_a_target_that_is_added_later_is_not_told_of_the_past(warehouse):
    with webhook() as first, webhook() as second:
        evaluate(warehouse, 0.1)
        deliver(warehouse, first.url)
        deliver(warehouse, first.url, second.url)
        assert second.received == []
        evaluate(warehouse, 0.9)
        deliver(warehouse, first.url, second.url)
        assert second.titles == ["visdiv: birds has recovered"]


def test_what_nobody_got_goes_to_the_corrected_address(warehouse):
    evaluate(warehouse, 0.1)
    with webhook() as right, webhook() as other:
        assert deliver(warehouse, "json://127.0.0.1:9/wrong")[0].error
        deliver(warehouse, right.url)
        deliver(warehouse, right.url, other.url)
        assert right.titles == ["visdiv: birds fell below its threshold"]
        assert other.titles == []


def test_without_a_target_alerts_wait(warehouse):
    evaluate(warehouse, 0.1)
    assert deliver(warehouse) == []
    with webhook() as hook:
        deliver(warehouse, hook.url)
        assert len(hook.received) == 1


def test_what_could_not_be_evaluated_is_told_once_and_so_is_its_end(warehouse):
    with webhook() as hook:
        evaluate(warehouse, 0.5)
        for _ in range(3):
            note_failure("birds", "no such file or directory: /data/birds", warehouse, run_id="r")
            deliver(warehouse, hook.url)
        assert (
            "likely reason: no such file or directory: /data/birds" in hook.received[0]["message"]
        )
        evaluate(warehouse, 0.5)
        deliver(warehouse, hook.url)
        assert hook.titles == [
            "visdiv: birds could not be evaluated",
            "visdiv: birds can be evaluated again",
        ]
    assert len(warehouse.history("birds")) == 2


def test_a_dataset_that_nobody_evaluates_goes_stale_once(warehouse):
    evaluate(warehouse, 0.5)
    evaluate(warehouse, 0.5, dataset="not watched")
    later = warehouse.history("birds")[-1].evaluated_at + timedelta(hours=27)
    assert note_stale(["birds"], warehouse, later - timedelta(hours=2)) == {}
    assert list(note_stale(["birds", "never evaluated"], warehouse, later)) == ["birds"]
    assert note_stale(["birds"], warehouse, later + timedelta(hours=1)) == {}
    with webhook() as hook:
        deliver(warehouse, hook.url, now=later)
        assert hook.titles == ["visdiv: birds has not been evaluated for more than 26 hours"]


def test_a_drop_is_told_but_its_end_is_not(warehouse):
    warehouse.change_conditions("birds", [State(Condition.DROPPED, active=True, reason="x")], NOW)
    warehouse.change_conditions("birds", [State(Condition.DROPPED, active=False)], NOW)
    with webhook() as hook:
        deliver(warehouse, hook.url)
        assert hook.titles == ["visdiv: birds dropped out of its usual range"]


def test_secrets_in_urls_reach_neither_the_store_nor_messages(warehouse):
    evaluate(warehouse, 0.1)
    url = "json://user:s3cret@127.0.0.1:9/hook?token=s3cret"
    [report] = deliver(warehouse, url)
    assert report.error
    assert "s3cret" not in str(report)
    assert "s3cret" not in str(warehouse.alerts())
    assert b"s3cret" not in warehouse.path.read_bytes()
    with pytest.raises(VisdivError) as error:
        Target("nonsense://s3cret")
    assert "s3cret" not in str(error.value)
