"""Alerts reach real services on loopback, each once, whatever fails on the way."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.notify.delivery import STILL_SENDING, Target, deliver_due, targets_of
from visdiv_assets.notify.messages import compose
from visdiv_assets.quality.conditions import Condition, State
from visdiv_assets.settings.model import AlertSettings
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.state.database import StateFile
from visdiv_assets.warehouse.state.outbox import address, alerts, note_states
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.watch import begin_judging, derive_alerts, note_failure, note_stale
from visdiv_assets_tests.notify.receivers import hanging, smtp_server, webhook

NOW = datetime(2026, 1, 1, tzinfo=UTC)
URL = "http://dagster.example:3000"
counter = itertools.count()


@dataclass(frozen=True)
class Service:
    """Results and state of a store."""

    root: Path

    @property
    def results(self) -> Warehouse:
        return Warehouse(self.root / "visdiv.duckdb")

    @property
    def state(self) -> StateFile:
        return StateFile(self.root / "state.sqlite")


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def evaluate(service: Service, score: float, dataset: str = "birds", **changes: object):
    """Record an evaluation as a run does, with the alerts that follow; threshold 0.30."""
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
        "threshold": 0.30,
        **changes,
    }
    begin_judging(service.results, service.state)
    service.results.record(Evaluation(**values), np.ones(512))
    return derive_alerts(service.results, service.state)


def deliver(
    service: Service, *urls: str, now: datetime = NOW + timedelta(days=1), wait: float = 60
):
    targets = [each for url in urls for each in Target(url).split()]
    return deliver_due(service.state, targets, dagster_url=URL, now=now, wait_seconds=wait)


def test_falling_below_and_recovering_are_told_once_each(service):
    with webhook() as hook:
        for score in (0.5, 0.2, 0.1, 0.2, 0.4, 0.5):
            evaluate(service, score)
            deliver(service, hook.url)
            deliver(service, hook.url)
        assert hook.titles == [
            "visdiv: birds fell below its threshold",
            "visdiv: birds has recovered",
        ]


FAIR = {"basis": "corrected", "corrected_low": 0.1101, "corrected_high": 0.1404}


def test_a_message_says_all_that_one_needs_to_act(service):
    evaluate(service, 0.4, corrected_score=0.5, **FAIR)
    changes = {"n_images": 300, "n_distinct": 50, "corrected_score": 0.1234}
    [alert] = evaluate(service, 0.1, **changes, **FAIR)
    evaluate(service, 0.9, corrected_score=0.1, **FAIR)  # later; not what the alert is about
    with webhook() as hook:
        deliver(service, hook.url)
        [body] = hook.received
    for part in (
        "birds fell below its threshold",
        "\nscore: 0.1234 (Low), before: 0.5000, threshold: 0.30\n",
        "\n95 % interval: 0.110 to 0.140, score as it is: 0.1000\n",
        "250 of 300 images are exact copies of others",
        "200 more images than before",
        f"{URL}/runs/{alert.run_id}",
    ):
        assert part in body["message"]


def test_a_dataset_judged_by_its_plain_score_is_told_of_with_both_scores(service):
    evaluate(service, 0.2)
    evaluate(service, 0.5)
    fair = {"corrected_score": 0.25, "corrected_low": 0.2, "corrected_high": 0.3}
    evaluate(service, 0.1, dataset="cats", **fair)
    with webhook() as hook:
        deliver(service, hook.url)
        message = hook.received[0]["message"]
    for part in (
        "\nscore as it is: 0.2000, threshold: 0.30\ncorrected: too few to tell\n",
        "\nscore as it is: 0.1000, threshold: 0.30\n"
        "corrected: 0.2500 (Low), 95 % interval: 0.200 to 0.300\n",
    ):
        assert part in message


def test_alerts_go_by_mail_too(service):
    evaluate(service, 0.1)
    with smtp_server() as (url, messages):
        [report] = deliver(service, url)
        assert report.error is None
        [message] = messages
    assert message["subject"] == "visdiv: birds fell below its threshold"
    texts = [part.get_payload(decode=True) for part in message.walk() if not part.is_multipart()]
    assert "threshold: 0.30" in b"".join(texts).decode()


def test_a_mail_is_plain_text_whatever_its_words_look_like(service):
    note_failure("birds", "no <b>such</b> file & no\ttable", service.state)
    note_failure("cats", "gone", service.state)
    with smtp_server() as (url, messages):
        deliver(service, url, now=datetime.now(UTC))
        [message] = messages
    parts = [part for part in message.walk() if not part.is_multipart()]
    texts = {part.get_content_type(): part.get_payload(decode=True).decode() for part in parts}
    assert "likely reason: no <b>such</b> file & no table\n" in texts["text/plain"].replace(
        "\r", ""
    )
    assert "<b>such</b>" not in texts.get("text/html", "")


def test_many_at_once_make_one_message(service):
    for number in range(5):
        evaluate(service, 0.1, dataset=f"set{number}")
    with webhook() as hook:
        deliver(service, hook.url)
        assert hook.titles == ["visdiv: 5 changes in set0, set1, set2 and 2 more"]
        assert all(f"set{number} fell below" in hook.received[0]["message"] for number in range(5))


def test_more_than_a_service_takes_is_told_in_a_line_each_and_no_more_lines_than_fit(service):
    state = State(Condition.NOT_EVALUATED, active=True, reason="the disk is gone")
    for number in range(20):
        note_states(service.state, f"set{number:02}", [state], NOW)
    due = [alert for alert, _ in reversed(alerts(service.state))]
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


def test_while_a_service_is_down_nothing_is_lost_and_nothing_doubled(service):
    now = NOW + timedelta(days=1)
    with webhook() as hook, webhook() as other:
        hook.down = True
        evaluate(service, 0.1)
        [failed, fine] = deliver(service, hook.url, other.url, now=now)
        assert failed.error
        assert fine.error is None
        # Not before its time, and the service that works is not told again.
        assert deliver(service, hook.url, other.url, now=now + timedelta(seconds=14)) == []
        evaluate(service, 0.9)
        for seconds in range(15, 600, 45):
            deliver(service, hook.url, other.url, now=now + timedelta(seconds=seconds))
        assert 3 <= hook.refused <= 8
        hook.down = False
        for hours in (2, 3):
            deliver(service, hook.url, other.url, now=now + timedelta(hours=hours))
        assert hook.titles == ["visdiv: 2 changes in birds"]
        assert other.titles == [
            "visdiv: birds fell below its threshold",
            "visdiv: birds has recovered",
        ]


def test_a_process_killed_between_evaluation_and_delivery_loses_nothing(service):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from visdiv_assets_tests.notify.test_delivery import Service, evaluate\n"
        "evaluate(Service(Path(sys.argv[1])), 0.1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(service.root)],
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ},
    )
    assert killed.returncode == -signal.SIGKILL
    with webhook() as hook:
        deliver(service, hook.url)
        deliver(service, hook.url)
        assert hook.titles == ["visdiv: birds fell below its threshold"]


def test_a_target_that_is_added_later_is_not_told_of_the_past(service):
    with webhook() as first, webhook() as second:
        evaluate(service, 0.1)
        deliver(service, first.url)
        deliver(service, first.url, second.url)
        assert second.received == []
        evaluate(service, 0.9)
        deliver(service, first.url, second.url)
        assert second.titles == ["visdiv: birds has recovered"]


def test_what_nobody_got_goes_to_the_corrected_address(service):
    evaluate(service, 0.1)
    with webhook() as right, webhook() as other:
        assert deliver(service, "json://127.0.0.1:9/wrong")[0].error
        deliver(service, right.url)
        deliver(service, right.url, other.url)
        assert right.titles == ["visdiv: birds fell below its threshold"]
        assert other.titles == []


def test_without_a_target_alerts_wait(service):
    evaluate(service, 0.1)
    assert deliver(service) == []
    with webhook() as hook:
        deliver(service, hook.url)
        assert len(hook.received) == 1


def test_what_could_not_be_evaluated_is_told_once_and_so_is_its_end(service):
    with webhook() as hook:
        evaluate(service, 0.5)
        for _ in range(3):
            note_failure(
                "birds", "no such file or directory: /data/birds", service.state, run_id="r"
            )
            deliver(service, hook.url)
        assert (
            "likely reason: no such file or directory: /data/birds" in hook.received[0]["message"]
        )
        evaluate(service, 0.5)
        deliver(service, hook.url)
        assert hook.titles == [
            "visdiv: birds could not be evaluated",
            "visdiv: birds can be evaluated again",
        ]
    assert len(service.results.history("birds")) == 2


def test_a_dataset_that_nobody_evaluates_goes_stale_once(service):
    evaluate(service, 0.5)
    evaluate(service, 0.5, dataset="not watched")
    later = service.results.history("birds")[-1].evaluated_at + timedelta(hours=27)
    assert note_stale(["birds"], service.state, later - timedelta(hours=2)) == {}
    assert list(note_stale(["birds", "never evaluated"], service.state, later)) == ["birds"]
    assert note_stale(["birds"], service.state, later + timedelta(hours=1)) == {}
    with webhook() as hook:
        deliver(service, hook.url, now=later)
        assert hook.titles == ["visdiv: birds has no evaluation of the last 26 hours"]


def test_a_drop_is_told_but_its_end_is_not(service):
    note_states(service.state, "birds", [State(Condition.DROPPED, active=True, reason="x")], NOW)
    note_states(service.state, "birds", [State(Condition.DROPPED, active=False)], NOW)
    with webhook() as hook:
        deliver(service, hook.url)
        assert hook.titles == ["visdiv: birds dropped out of its usual range"]


def test_secrets_in_urls_reach_neither_the_store_nor_messages(service):
    evaluate(service, 0.1)
    url = "json://user:s3cret@127.0.0.1:9/hook?token=s3cret"
    [report] = deliver(service, url)
    assert report.error
    assert "s3cret" not in str(report)
    assert "s3cret" not in str(alerts(service.state))
    assert b"s3cret" not in service.state.path.read_bytes()
    with pytest.raises(VisdivError) as error:
        Target("nonsense://s3cret")
    assert "s3cret" not in str(error.value)


# --- one recipient's trouble is its own ---


def test_an_address_that_is_refused_does_not_make_the_others_get_it_again(service):
    evaluate(service, 0.1)
    with smtp_server(refuses="gone@example.com") as (url, messages):
        url = url.replace("to=team@example.com", "to=team@example.com,gone@example.com")
        for hours in range(5):
            deliver(service, url, now=NOW + timedelta(days=1, hours=hours))
        assert [message["X-RcptTo"] for message in messages] == ["team@example.com"]
    [(_, deliveries)] = alerts(service.state)
    assert sorted(each.attempts for each in deliveries) == [1, 5]
    assert sum(each.delivered_at is not None for each in deliveries) == 1


def test_who_gets_a_copy_of_a_mail_gets_one(service):
    evaluate(service, 0.1)
    with smtp_server() as (url, messages):
        assert len(Target(f"{url}&cc=boss@example.com&bcc=me@example.com").split()) == 3
        deliver(service, f"{url}&cc=boss@example.com&bcc=me@example.com")
        assert sorted(message["X-RcptTo"] for message in messages) == [
            "boss@example.com",
            "me@example.com",
            "team@example.com",
        ]


@pytest.mark.parametrize("between", [" ", ", ", ","])
def test_of_two_urls_in_one_text_each_is_told_once(service, between):
    evaluate(service, 0.1)
    with webhook() as up, webhook() as down:
        down.down = True
        for hours in range(4):
            deliver(service, between.join([up.url, down.url]), now=NOW + timedelta(hours=hours))
        assert len(up.titles) == 1
        down.down = False
        deliver(service, between.join([up.url, down.url]))
        assert len(up.titles) == len(down.titles) == 1


def test_a_url_alone_and_among_others_is_the_same_recipient():
    [alone] = Target("json://127.0.0.1/a").split()
    both = Target("json://127.0.0.1/a json://127.0.0.1/b").split()
    assert alone.id in {each.id for each in both}
    assert len({each.id for each in both}) == 2


def test_an_address_is_the_same_recipient_whoever_else_is_added_to_its_url():
    url = "mailto://127.0.0.1:25?from=a@example.com&to="
    two, three = (
        {each.id for each in Target(url + to).split()}
        for to in ("x@example.com,y@example.com", "x@example.com,y@example.com,z@example.com")
    )
    assert (len(two), len(three)) == (2, 3)
    assert two < three


def test_chats_and_channels_are_recipients_of_their_own():
    token = "123456789:abcdefghijklmnopqrstuvwxyz123456789"
    assert len(Target(f"tgram://{token}/111/222").split()) == 2
    hook = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    assert len(Target(f"{hook}/#a/#b").split()) == 2


@pytest.mark.slow
def test_a_service_that_answers_after_five_seconds_has_been_told(service):
    evaluate(service, 0.1)
    with webhook() as hook:
        hook.pause = 5.0
        assert [each.error for each in deliver(service, hook.url)] == [None]
        deliver(service, hook.url, now=NOW + timedelta(days=2))
        assert len(hook.titles) == 1


def _sent_to(recipient: str) -> None:
    """Wait until nothing is on its way to a recipient, or to anybody if it is empty."""
    for thread in threading.enumerate():
        if thread.name.startswith(f"alerts {recipient}"):
            thread.join()


def test_services_that_hang_hold_up_nobody_and_are_told_once_they_answer(service):
    evaluate(service, 0.1)
    with webhook() as hook, hanging(5) as (ports, let_go):
        mail = "mailto://127.0.0.1:{}?from=visdiv@example.com&to=team@example.com"
        urls = [*(mail.format(port) for port in ports), hook.url]
        [told] = Target(hook.url).split()
        report = deliver(service, *urls, wait=0.5)
        assert [each.error for each in report[:5]] == [STILL_SENDING] * 5
        _sent_to(told.id)
        assert len(hook.titles) == 1
        # Rounds go on meanwhile, and nobody is told twice.
        evaluate(service, 0.9)
        report = deliver(service, *urls, now=NOW + timedelta(days=2), wait=0.5)
        assert [each.error for each in report[:5]] == [STILL_SENDING] * 5
        _sent_to(told.id)
        assert len(hook.titles) == 2
        let_go()
        _sent_to("")
        assert all(each.last_error for each in alerts(service.state)[1][1] if not each.delivered_at)


def test_a_service_that_never_answers_gets_longer_and_ever_longer_pauses(service):
    evaluate(service, 0.1)
    with hanging(1) as ([port], _):
        url = f"json://127.0.0.1:{port}/x?rto=0.2"
        told, now = 0, NOW
        for _ in range(60):
            now += timedelta(minutes=10)
            told += bool(deliver(service, url, now=now))
    assert 8 <= told <= 10  # after 1, 2, 4, … minutes; each time it may have got it


def test_what_a_recipient_was_not_told_it_is_told_in_order_and_at_once(service):
    with webhook() as hook:
        hook.down = True
        start = NOW + timedelta(days=1)
        for minute, score in enumerate((0.1, 0.9, 0.1, 0.9)):
            evaluate(service, score)
            deliver(service, hook.url, now=start + timedelta(minutes=minute))
        hook.down = False
        deliver(service, hook.url, now=start + timedelta(hours=2))
        [body] = hook.received
        lines = [line for line in body["message"].splitlines() if line.startswith("birds ")]
        assert lines == ["birds fell below its threshold", "birds has recovered"] * 2


@pytest.mark.parametrize("year", [1980, 2080])
def test_an_alert_is_told_whatever_the_clock_said_when_the_dataset_was_evaluated(service, year):
    evaluate(service, 0.1, evaluated_at=datetime(year, 1, 1, tzinfo=UTC))
    with webhook() as hook:
        deliver(service, hook.url, now=datetime.now(UTC))
        assert hook.titles == ["visdiv: birds fell below its threshold"]


def test_trying_ends_after_a_week_and_the_list_says_so(service):
    evaluate(service, 0.1)
    now = datetime.now(UTC)
    with webhook() as hook:
        hook.down = True
        for day in range(9):
            deliver(service, hook.url, now=now + timedelta(days=day))
        hook.down = False
        assert deliver(service, hook.url, now=now + timedelta(days=10)) == []
        evaluate(service, 0.9)
        deliver(service, hook.url, now=now)
        assert hook.titles == ["visdiv: birds has recovered"]
    _, (_, [delivery]) = alerts(service.state)
    assert delivery.given_up_at is not None


# --- what cannot be recorded ---


def test_while_the_state_cannot_be_written_nothing_is_sent(service, monkeypatch):
    evaluate(service, 0.1)
    with webhook() as hook:
        address(service.state, {each.id: each.label for each in Target(hook.url).split()}, NOW)
        with full_disk(monkeypatch):
            for hours in range(5):
                [report] = deliver(service, hook.url, now=NOW + timedelta(hours=hours))
                assert "full" in report.error
        assert hook.titles == []
        deliver(service, hook.url)
        deliver(service, hook.url)
        assert len(hook.titles) == 1


def test_an_answer_that_cannot_be_recorded_is_recorded_later_and_nothing_is_sent_again(
    service, monkeypatch
):
    evaluate(service, 0.1)
    with webhook() as hook, webhook() as other:
        with full_disk(monkeypatch, "visdiv_assets.notify.delivery.settle"):
            deliver(service, hook.url, other.url)
        for hours in range(5):
            deliver(service, hook.url, other.url, now=NOW + timedelta(days=1, hours=hours))
        assert len(hook.titles) == len(other.titles) == 1
    [(_, deliveries)] = alerts(service.state)
    assert all(each.delivered_at for each in deliveries)


def test_a_notebook_that_has_the_results_open_changes_nothing_for_alerts(service):
    evaluate(service, 0.1)
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(1, flush=True); input()"
    with (
        webhook() as hook,
        subprocess.Popen(
            [sys.executable, "-c", code, str(service.results.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as notebook,
    ):
        notebook.stdout.readline()
        hook.down = True
        deliver(service, hook.url, now=NOW)
        hook.down = False
        for minutes in range(1, 10):
            deliver(service, hook.url, now=NOW + timedelta(minutes=minutes))
        assert len(hook.titles) == 1
        notebook.communicate(b"\n")


@pytest.mark.slow
def test_a_process_killed_while_it_sends_leaves_the_alert_to_the_next(service):
    evaluate(service, 0.1)
    code = (
        "import sys\n"
        "from visdiv_assets_tests.notify.test_delivery import *\n"
        "deliver(Service(Path(sys.argv[1])), sys.argv[2], now=NOW)\n"
    )
    with webhook() as hook:
        hook.pause = 60.0
        with subprocess.Popen(
            [sys.executable, "-c", code, str(service.root), hook.url],
            cwd=Path(__file__).parents[2],
        ) as sender:
            assert hook.asked.wait(60)
            sender.kill()
        hook.pause, hook.received[:] = 0.0, []
        assert deliver(service, hook.url, now=NOW + timedelta(minutes=1)) == []  # still its claim
        deliver(service, hook.url, now=NOW + timedelta(minutes=6))
        assert len(hook.titles) == 1


def test_a_fault_of_a_services_own_is_a_failure_like_any_other(service, monkeypatch):
    evaluate(service, 0.1)
    with webhook() as hook, webhook() as other:

        def fail(*arguments, **options):
            raise KeyError("s3cret")

        bad = Target(hook.url)
        monkeypatch.setattr(bad._apprise, "notify", fail)
        targets = [bad, Target(other.url)]
        report = deliver_due(
            service.state, targets, dagster_url=URL, now=NOW + timedelta(days=1), wait_seconds=60
        )
        assert "KeyError" in report[0].error
        assert report[1].error is None


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, what: str = "") -> Iterator[None]:
    """While it lasts, nothing can be written to the state."""

    def fail(*arguments, **options):
        raise VisdivError("cannot use the service's state: database or disk is full")

    with monkeypatch.context() as patch:
        if what:
            patch.setattr(what, fail)
        else:
            patch.setattr(StateFile, "transaction", fail)
        yield


def test_a_url_without_its_variable_leaves_the_other_targets(monkeypatch):
    monkeypatch.delenv("VISDIV_TEST_UNSET", raising=False)
    urls = ["json://a/${VISDIV_TEST_UNSET}", "json://b", "json://${VISDIV_TEST_UNSET}", "json://c"]
    targets, problems = targets_of(AlertSettings(urls=urls))
    assert len(targets) == 2
    unset = "the environment variable VISDIV_TEST_UNSET, used by 'alerts.urls', is not set"
    assert problems == [unset, unset]
