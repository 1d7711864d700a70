"""Secrets: planted wherever one can be, looked for in everything that is shown, logged and kept."""

import hashlib
import http.server
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus, unquote

import dagster as dg
import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from visdiv_assets.cli.main import app
from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.partitions import run_tags
from visdiv_assets.defs.resources import (
    EmbedderResource,
    SettingsResource,
    StoreResource,
    WarehouseResource,
)
from visdiv_assets.defs.sensors import (
    alert_sensor,
    dataset_change_sensor,
    dataset_registry_sensor,
    failed_run_sensor,
)
from visdiv_assets.errors import VisdivError
from visdiv_assets.notify.delivery import Target, deliver_due, targets_of
from visdiv_assets.notify.messages import Message
from visdiv_assets.settings import secrets
from visdiv_assets.settings.reading import load_settings
from visdiv_assets.settings.secrets import redacted, remember, secrets_in
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.state.database import StateFile
from visdiv_assets.warehouse.state.outbox import alerts as alerts_of
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.watch import note_failure
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_images
from visdiv_assets_tests.sources.servers import http_server

MESSAGE = Message("visdiv: test", "a text")


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    """What other tests planted must not hide what this one does."""
    monkeypatch.setattr(secrets, "_known", set())


@pytest.fixture
def logged(caplog):
    """Everything that is logged, at the lowest level, by whomever."""
    caplog.set_level(logging.DEBUG)
    for name in ("apprise", "urllib3", "fsspec", "aiohttp", "requests", "dagster"):
        caplog.set_level(logging.DEBUG, name)
    caplog.clear()
    return lambda: "\n".join(
        f"{each.getMessage()} {each.args} {each.exc_text} {each.exc_info}"
        for each in caplog.records
        if each.name not in ("werkzeug", "tests")
    )


# --- alert URLs of every service ---


class Service(NamedTuple):
    name: str
    url: str
    keys: set[str]  # what Apprise says is private


def planted(service: str, token: str, attempt: int) -> list[str]:
    """Secrets of many forms, one of which a service takes for a token; no two are alike."""
    digest = hashlib.sha256(f"{service} {token} {attempt}".encode()).hexdigest()
    number = str(int(digest, 16))
    letters = "".join(chr(ord("a") + int(each, 16)) for each in digest)
    groups = (8, 4, 4, 4, 12)
    parts = [digest[sum(groups[:at]) : sum(groups[: at + 1])] for at in range(5)]
    return [
        f"Secret{digest[:16]}",
        digest[:32].upper(),
        digest[:32],
        digest,
        letters[:10].upper() + digest[:10],
        letters[:32],
        "-".join(parts),
        "1" + number[:10],
        f"{digest[:12]}@example.com",
        f"{number[:9]}:{letters[:35]}",
        f"AC{digest[:32]}",
        f"AK_{digest[:16]}",
        f"AKIA{letters[:16].upper()}",
        number[:8],
    ]


def services() -> Iterator[Service]:
    """A URL of each service whose form can be found by trying."""
    import apprise

    for known in apprise.Apprise().details()["schemas"]:
        templates = [each for each in known["details"]["templates"] if "}{" not in each]
        for template in sorted(templates, key=len, reverse=True):
            found = tried(known, template)
            if found:
                yield found
                break


def tried(known: dict[str, Any], template: str) -> Service | None:
    import apprise

    name, tokens = str(known["service_name"]), known["details"]["tokens"]
    for attempt in range(14):
        values = {}
        for token in re.findall(r"{(\w+)}", template):
            about = tokens.get(token, {})
            forms = planted(name, token, attempt)
            if pattern := about.get("regex"):
                flags = re.IGNORECASE if "i" in (pattern[1] or "") else 0
                forms = [each for each in forms if re.match(pattern[0], each, flags)] or forms
            if about.get("values"):
                forms = sorted(map(str, about["values"]))
            values[token] = forms[attempt % len(forms)]
        values |= {"host": "127.0.0.1", "port": "9", "region": "us-east-1"}
        values["schema"] = [*(known["protocols"] or []), *(known["secure_protocols"] or [])][0]
        url = re.sub(r"{(\w+)}", lambda found: values[found[1]], template)  # noqa: B023
        if apprise.Apprise.instantiate(url, suppress_exceptions=True):
            private = {token for token in values if tokens.get(token, {}).get("private")}
            return Service(name, url, {values[token] for token in private - {"host"}})
    return None


@pytest.fixture(scope="module")
def every_service() -> list[Service]:
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    try:
        return list(services())
    finally:
        logging.getLogger("apprise").setLevel(logging.NOTSET)


@pytest.mark.slow
def test_no_label_of_any_service_holds_what_is_private_there(every_service):
    assert len(every_service) > 140
    shown = {
        service.name: label
        for service in every_service
        for label in [Target(service.url).label]
        if any(key.lower() in label.lower() for key in service.keys)
    }
    assert shown == {}


def test_what_is_private_to_any_service_is_shown_by_nobody(every_service, monkeypatch):
    shown = {}
    for service in every_service:
        monkeypatch.setattr(secrets, "_known", set())
        Target(service.url)
        clean = redacted(f"{service.url} and {' and '.join(service.keys)}").lower()
        if left := [key for key in service.keys if key.lower() in clean]:
            shown[service.name] = (service.url, left)
    assert shown == {}


class _Refuses(http.server.BaseHTTPRequestHandler):
    """Answers with what it was asked for, as unkind servers do."""

    def _refuse(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked = f"{self.requestline} {self.headers} {self.rfile.read(length)!r}"
        self.send_response(403)
        self.end_headers()
        self.wfile.write(asked.encode())

    do_GET = do_POST = do_PUT = do_CONNECT = do_HEAD = do_PATCH = _refuse  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def refusing_proxy() -> Iterator[str]:
    """The address of a proxy that lets nobody through."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def proxy(monkeypatch):
    """All requests go to a proxy that needs a login, and refuses."""
    with refusing_proxy() as address:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://proxy-user:ProxySECRET77@{address}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield address


def holds_none(text: str, planted: Iterable[str]) -> None:
    """Whether a text holds none of the secrets, in whatever case or with escapes."""
    for form in (text, unquote(text)):
        for secret in planted:
            at = form.lower().find(secret.lower())
            assert at < 0, f"{secret}: …{form[max(0, at - 100) : at + 100]}…"


COMMON = ("Pager Duty", "Opsgenie", "Pushover", "Slack", "Discord", "JSON", "Microsoft Teams")


@pytest.mark.parametrize(
    "some",
    [
        pytest.param(lambda name: name in COMMON, id="common"),
        pytest.param(
            lambda name: name not in COMMON,
            id="all others",
            marks=[pytest.mark.slow, pytest.mark.timeout(600)],
        ),
    ],
)
def test_a_service_that_refuses_repeats_no_key(some, every_service, proxy, logged, caplog):
    chosen = [service for service in every_service if some(service.name)]
    assert len(chosen) > 4
    for service in chosen:
        caplog.clear()
        error = Target(service.url).send(MESSAGE)
        holds_none(f"{error} {logged()}", {*service.keys, "ProxySECRET77"})


MALFORMED = {
    "slack:/T1SECRET/B1SECRET/TokenSECRET": "'slack'",
    "slack:///": "'slack'",
    "slack://T1SECRET": "'slack'",
    "pagerduty:SECRETKEY": "'pagerduty'",
    "TokenSECRET": "does not start with a service",
    "SECRET:TokenSECRET": "does not start with a service",
    "nonsense://me:SECRET@host/SECRET?key=SECRET": "'nonsense'",
    "https:/hooks.example.com/services/T1SECRET": "does not start with a service",
    "tgram:/123456789:SECRETabc/": "'tgram'",
    "json://me:SECRET@[127/": "'json'",
    "  opsgenie:/SECRET": "does not start with a service",
}


@pytest.mark.parametrize(("url", "told"), MALFORMED.items())
def test_a_malformed_alert_url_is_named_by_its_service_alone(url, told, logged):
    with pytest.raises(VisdivError, match=told) as caught:
        Target(url)
    assert "SECRET" not in str(caught.value) + logged()


def test_the_label_of_a_target_tells_two_of_one_service_apart():
    first, second = Target("json://127.0.0.1/a"), Target("json://127.0.0.1/b")
    assert first.label != second.label
    assert re.fullmatch(r"JSON \([0-9a-f]{4}\)", first.label)


def test_a_target_has_the_identity_that_it_had_before():
    """The outbox knows targets by it; another one would mean that alerts are sent twice."""
    url = "json://user:s3cret@127.0.0.1:9/hook"
    assert Target(url).id == hashlib.sha256(url.encode()).hexdigest()[:16]


@pytest.mark.parametrize("url", ["json://127.0.0.1:9/{}", "json://127.0.0.1:9/?+X-Token={}"])
def test_what_a_webhook_is_told_in_its_path_or_headers_is_not_logged(url, logged):
    assert Target(url.format("SecretPath1234")).send(MESSAGE)
    holds_none(logged(), ["SecretPath1234"])


# --- texts ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:word@host/a.zip?sig=abc#part", "https://host/a.zip"),
        ("(https://host/a.zip?sig=abc), then", "(https://host/a.zip), then"),
        ("https:/me:word@host/a.zip?sig=abc", "https:/host/a.zip"),
        ("no such file: /data/https:/me:word@host/a.zip", "no such file: /data/https:/host/a.zip"),
        ("https://me:wo/rd@host/a", "https://host/a"),
        ("s3://key:word@bucket/a", "s3://bucket/a"),
        ("a.jpg?X-Amz-Signature=abc&id=7", "a.jpg?X-Amz-Signature=***&id=7"),
        ("Authorization: Basic bWU6d29yZA==", "Authorization: Basic ***"),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': 'Bearer ***'}"),
        ('"POST /services/T1/B1/x HTTP/1.1" 404', '"POST *** HTTP/1.1" 404'),
        ("Max retries exceeded with url: /T1/B1 (…)", "Max retries exceeded with url: *** (…)"),
        ("/data/photos/a@b.jpg: 3 of 4", "/data/photos/a@b.jpg: 3 of 4"),
        ("file:///data/a@b/c?d.jpg", "file:///data/a@b/c?d.jpg"),
        ("lists: see https://example.com/docs.", "lists: see https://example.com/docs."),
    ],
)
def test_a_text_is_shown_without_the_secrets_in_it(text, expected):
    assert redacted(text) == expected
    assert redacted(expected) == expected


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=6, max_size=40),
    st.sampled_from([str, quote, quote_plus, partial(quote, safe=""), lambda each: repr(each)]),
)
def test_a_known_secret_is_hidden_in_whatever_form_it_is_repeated(secret, form):
    secrets._known.clear()
    remember([secret])
    assert redacted(f"<{form(secret)}>") in ("<***>", "<'***'>", '<"***">')


@given(st.text(max_size=200))
def test_what_was_redacted_once_stays_as_it_is(text):
    once = redacted(f"https://{text}")
    assert redacted(once) == once


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HTTPS_PROXY", "http://proxy-user:ProxySECRET77@127.0.0.1:9", "ProxySECRET77"),
        ("all_proxy", "proxy-user:ProxySECRET77@127.0.0.1:9", "ProxySECRET77"),
        ("AWS_SESSION_TOKEN", "SessionSECRET77", "SessionSECRET77"),
        ("AZURE_STORAGE_SAS", "SasSECRET77", "SasSECRET77"),
        ("SLACK_WEBHOOK", "https://hooks.example.com/T1/SECRET77", "T1/SECRET77"),
        ("TEAM_API_KEY", "ApiSECRET77", "ApiSECRET77"),
        ("DB_PASSWORD", "WordSECRET77", "WordSECRET77"),
    ],
)
def test_a_secret_of_the_environment_is_hidden(name, value, secret, monkeypatch):
    assert secret in redacted(f"got {secret}")
    monkeypatch.setenv(name, value)
    assert secret not in redacted(f"got {secret}, {value}")


def test_names_of_files_that_hold_secrets_are_shown(monkeypatch):
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token-of-aws")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/etc/google-key.json")
    text = "cannot read /var/run/token-of-aws and /etc/google-key.json"
    assert redacted(text) == text


@pytest.mark.parametrize("name", ["PWD", "OLDPWD"])
def test_the_current_folder_is_no_secret(name, monkeypatch):
    monkeypatch.setenv(name, "/home/me/project")
    assert (
        redacted("there is nothing in /home/me/project") == "there is nothing in /home/me/project"
    )


def test_short_and_public_values_do_not_tear_holes_into_texts():
    remember(secrets_in("s3://me:pw@bucket/x", {"region": "eu-west-1", "bucket": "pictures"}))
    remember(secrets_in("s3://bucket/x", {"skip_signature": "true"}))
    text = "it is true that me and pw read pictures in eu-west-1"
    assert redacted(text) == text


def test_a_log_record_holds_no_secret_whichever_logger_and_handler_it_comes_from():
    remember(["LogSECRET77"])
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    log = logging.getLogger("somebody.elses")
    log.propagate = False
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        try:
            raise OSError("no LogSECRET77")
        except OSError as error:
            cause = error
        log.debug("%s and %r", "LogSECRET77", {"LogSECRET77": 1}, exc_info=cause)
        log.info("https://me:pw@host/x?sig=y%%")
        log.error("%d is not what it should be: %s", 7, "all is well")
    finally:
        log.removeHandler(handler)
    texts = [logging.Formatter().format(record) for record in records]
    assert "LogSECRET77" not in texts[0]
    assert "OSError: no ***" in texts[0]
    assert texts[1] == "https://host/x"
    assert texts[2] == "7 is not what it should be: all is well"


# --- a whole project ---

PLACES = {
    "hook login": "HookSECRET77",
    "hook path": "Path4SECRET77",
    "hook header": "HeaderSECRET77",
    "alert key": "Api0SECRET77xyzw",
    "alert integration": "Integ0SECRET77abcdef",
    "malformed alert": "Token0SECRET77",
    "variable": "Variable0SECRET77",
    "option": "Option0SECRET77",
    "list login": "ListLogin0SECRET77",
    "list signature": "ListSignature0SECRET77",
    "entry login": "EntryLogin0SECRET77",
    "entry signature": "EntrySignature0SECRET77",
    "column": "Column0SECRET77",
    "weights login": "WeightsLogin0SECRET77",
    "weights signature": "WeightsSignature0SECRET77",
    "proxy": "Proxy0SECRET77",
    "malformed source": "Malformed0SECRET77",
    "misplaced": "Misplaced0SECRET77",
}
WEIGHTS = (
    f"http://weights-user:{PLACES['weights login']}@weights.example.com/w.pt"
    f"?X-Amz-Signature={PLACES['weights signature']}"
)


class SomeEmbedder(EmbedderResource):
    """No model, except where the settings name one."""

    def open(self, dataset: str) -> Any:
        if dataset == "weights":
            return super().open(dataset)
        return FakeEmbedder(batch_size=64)


class Planted(NamedTuple):
    """A project with a secret in every place that can hold one."""

    root: Path
    settings: Path


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Planted]:
    far = write_images(tmp_path / "far", 4)
    write_images(tmp_path / "photos", 4)
    monkeypatch.setattr("visdiv_assets.sources.places.ATTEMPTS", 1)
    monkeypatch.setattr("visdiv_assets.sources.buckets.ATTEMPTS", 1)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("VISDIV_WEIGHTS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PLANTED_TOKEN", PLACES["variable"])
    key = f"pagerduty://{PLACES['alert integration']}@{PLACES['alert key']}"
    monkeypatch.setenv("PLANTED_ALERT", key)
    for name in ("VISDIV_CONFIG", "VISDIV_STORE", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    with http_server(tmp_path) as address, refusing_proxy() as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://proxy-user:{PLACES['proxy']}@{proxy}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        login = address.replace("://", f"://entry-user:{PLACES['entry login']}@")
        signed = f"X-Amz-Signature={PLACES['entry signature']}&X-Amz-Expires=60"
        preview = f"https://cdn.example.com/p.jpg?token={PLACES['column']}"
        names = [*sorted(path.name for path in far.iterdir()), "gone.png"]
        lines = [f"{address}/far/{name}?{signed},{preview}" for name in names]
        lines += [f"{login}/far/000.png?id=1&{signed},{preview}"]
        lines += [f"https://me:{PLACES['entry login']}@127.0.0.1:9/x.png?{signed},{preview}"]
        (tmp_path / "list.csv").write_text("\n".join(["url,preview", *lines]))
        query = f"?sig={PLACES['list signature']}"
        root = address.replace("://", f"://list-user:{PLACES['list login']}@")
        settings = tmp_path / "visdiv.yaml"
        settings.write_text(f"""
store: store
settle_seconds: 0
alerts:
  urls:
    - json://hook-user:{PLACES["hook login"]}@127.0.0.1:9/{PLACES["hook path"]}?+X-Key={PLACES["hook header"]}
    - ${{PLANTED_ALERT}}
    - slack:/T1/B1/{PLACES["malformed alert"]}
    - ${{NO_SUCH_VARIABLE}}
embedder: {{weights: '{WEIGHTS}'}}
datasets:
  photos: {{source: photos, threshold: 0.99, basis: plain, tags: {{team: "${{PLANTED_TOKEN}}"}}}}
  list: {{source: {{uri: '{root}/list.csv{query}', root: '{root}/far{query}'}}}}
  weights: {{source: photos}}
  odd: {{source: 'https:/odd-user:{PLACES["malformed source"]}@host/x.zip?sig={PLACES["malformed source"]}'}}
  bucket:
    source:
      uri: s3://bucket/pictures.zip
      options:
        endpoint: http://127.0.0.1:9
        region: us-east-1
        access_key_id: me
        secret_access_key: {PLACES["option"]}
""")  # noqa: E501
        yield Planted(tmp_path, settings)


def kept_below(*folders: Path) -> str:
    """All that files hold; what DuckDB compressed, as rows."""
    texts = []
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        texts += [str(path), path.read_bytes().decode("latin-1")]
        if path.suffix == ".duckdb":
            with duckdb.connect(str(path), read_only=True) as connection:
                tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
                texts += [repr(connection.sql(f'FROM "{name}"').fetchall()) for (name,) in tables]
        if path.suffix == ".parquet":
            texts.append(repr(pq.read_table(path).to_pylist()))
    return "\n".join(texts)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["weights"], id="a run that fails"),
        pytest.param(
            ["weights", "photos", "list", "odd", "bucket"], id="all", marks=pytest.mark.slow
        ),
    ],
)
def test_dagster_is_told_no_secret(names, project, logged, capfd):
    """Runs that succeed and fail, ticks of all sensors and the schedules, checks, deliveries."""
    home = project.root / "dagster"
    home.mkdir()
    settings = SettingsResource(config_path=str(project.settings))
    resources = {"settings": settings, "embedder": SomeEmbedder(settings=settings)}
    definitions = build_defs(resource_overrides=resources)
    needs = {
        "settings": settings,
        "store": StoreResource(settings=settings),
        "warehouse": WarehouseResource(settings=settings),
    }
    job = definitions.resolve_job_def("evaluate_dataset")
    said = []
    quiet = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(home), overrides=quiet) as instance:

        def tick(sensor: dg.SensorDefinition, cursor: str | None = None) -> Any:
            needed = {name: needs[name] for name in sensor.required_resource_keys}
            with dg.build_sensor_context(instance, cursor, resources=needed) as context:
                ticked = sensor(context)
            said.append(repr(ticked))
            return ticked

        tick(dataset_registry_sensor)
        instance.add_dynamic_partitions("datasets", names)
        tick(dataset_change_sensor)
        for name in names:
            tags = run_tags(load_settings(project.settings).dataset(name))
            result = job.execute_in_process(
                partition_key=name, instance=instance, raise_on_error=False, tags=tags
            )
            assert result.success is (name in ("photos", "list"))
            said.append(repr(instance.all_logs(result.run_id)) + repr(result.dagster_run))
        assert "noted" in tick(failed_run_sensor, cursor="0 0.0").skip_reason.skip_message
        tick(dataset_change_sensor)
        told = tick(alert_sensor).skip_message
        tick(alert_sensor)
    assert "Pager Duty (" in told
    assert "JSON (" in told
    assert "'slack'" in told
    assert "NO_SUCH_VARIABLE" in told
    kept = kept_below(project.root / "store", home)
    assert "cannot download the SSCD weights from http://weights.example.com/w.pt" in kept
    assert ("gone.png" in kept) is ("list" in names)
    captured = capfd.readouterr()
    holds_none("\n".join([*said, kept, logged(), captured.out, captured.err]), PLACES.values())


def test_no_command_shows_a_secret(project, logged, monkeypatch):
    warehouse = Warehouse(project.root / "store/visdiv.duckdb")
    store = Store(project.root / "store")
    for dataset in ("list", "photos"):
        source = load_settings(project.settings).dataset(dataset).source
        evaluate(dataset, open_source(source), FakeEmbedder(), store, warehouse, threshold=0.99)
    state = StateFile(project.root / "store/state.sqlite")
    note_failure("weights", f"cannot download {WEIGHTS}", state)
    said = []
    for dataset, shown in (("odd", "is not a valid address"), ("bucket", "s3://bucket")):
        source = load_settings(project.settings).dataset(dataset).source
        with pytest.raises(VisdivError, match=shown) as caught:
            evaluate(dataset, open_source(source), FakeEmbedder(), store, warehouse)
        said.append(str(caught.value))
    for command, shown in {
        "list": "bucket",
        "doctor": "http://weights.example.com/w.pt",
        "score weights": "http://weights.example.com/w.pt",
        f"score {WEIGHTS}": "http://weights.example.com/w.pt",
        f"history {WEIGHTS}": "has never been evaluated",
        "history list": "",
        "failures list": "gone.png",
        "failures list --paths": "gone.png",
        "duplicates list": "",
        "select list -k 2": "",
        "alerts test": "error",
        "alerts list": "weights could not be evaluated",
        "slices list": "",
        "schema": "properties",
    }.items():
        monkeypatch.chdir(project.root)
        config = [] if command == "schema" else ["--config", str(project.settings)]
        result = CliRunner().invoke(app, [*command.split(), *config])
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        assert shown in result.output
        said.append(result.output)
    alerts = load_settings(project.settings).alerts
    targets, problems = targets_of(alerts)
    assert len(targets) == len(problems) == 2
    later = datetime.now(UTC) + timedelta(days=1)
    report = deliver_due(state, targets, dagster_url="http://localhost", now=later)
    assert all(each.error for each in report)
    said += [repr(report), repr(problems), repr(alerts_of(state))]
    said += [CliRunner().invoke(app, ["alerts", "list", "--config", str(project.settings)]).output]
    kept = kept_below(project.root / "store")
    holds_none("\n".join([*said, kept, logged()]), PLACES.values())
