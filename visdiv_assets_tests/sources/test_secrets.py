"""Credentials: wherever they come from, nothing that visdiv says or keeps holds them."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import pytest
from typer.testing import CliRunner

from visdiv_assets.cli.main import app
from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.resources import EmbedderResource, SettingsResource
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.settings.reading import load_settings
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.workflows.project import dataset_name_for
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_images
from visdiv_assets_tests.sources.servers import SECRET, http_server, s3_server

LOGIN = "http-user-SECRETLOGIN"
PASSWORD = "SECRET/PASS word"
SIGNATURE = "SECRETSIGNATURE+/="
ESCAPED = {
    PASSWORD: "SECRET%2FPASS%20word",
    SIGNATURE: "SECRETSIGNATURE%2B%2F%3D",
}
SECRETS = [SECRET, LOGIN, PASSWORD, SIGNATURE, *ESCAPED.values(), "SECRETSIGNATURE", "SECRET%2F"]

WAYS = ("options", "environment", "login", "query", "list of addresses")
IMAGES = 4


class Far(NamedTuple):
    source: SourceSettings
    folder: Path  # of the images, where a web server serves them


def write_folder(folder):
    """Four images that can be embedded, one that is none, and one that cannot be read."""
    write_images(folder, IMAGES)
    (folder / "text.png").write_text("I am no image")
    names = [path.name for path in sorted(folder.iterdir())] + ["gone.png"]
    (folder / "list.txt").write_text("\n".join(names))
    return names


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """An object store with the images in a bucket."""
    folder = tmp_path_factory.mktemp("bucket")
    write_folder(folder)
    with s3_server(echoing) as endpoint:
        upload(endpoint, folder)
        yield endpoint


@pytest.fixture(params=WAYS)
def far(request, tmp_path, monkeypatch) -> Iterator[Far]:
    """Images that need credentials."""
    folder = tmp_path / "far"
    names = write_folder(folder)
    if request.param in ("options", "environment"):
        keys = {"access_key_id": "me", "secret_access_key": SECRET}
        options = {"endpoint": request.getfixturevalue("endpoint"), "region": "us-east-1"}
        if request.param == "options":
            options |= keys
        else:
            for name, value in keys.items():
                monkeypatch.setenv(f"AWS_{name.upper()}", value)
        yield Far(SourceSettings(uri="s3://bucket/list.txt", options=options), folder)
        return
    with http_server(folder) as address:
        login = address.replace("://", f"://{LOGIN}:{ESCAPED[PASSWORD]}@")
        query = f"?sig={ESCAPED[SIGNATURE]}&user={LOGIN}"
        if request.param == "login":
            yield Far(SourceSettings(uri=f"{login}/list.txt"), folder)
        elif request.param == "query":
            yield Far(SourceSettings(uri=f"{address}/list.txt{query}"), folder)
        else:
            addresses = [f"{login}/{name}{query}" for name in names]
            addresses.append(f"https://{LOGIN}:{ESCAPED[PASSWORD]}@127.0.0.1:9/x.png{query}")
            (folder / "list.txt").write_text("\n".join(addresses))
            yield Far(SourceSettings(uri=f"{address}/list.txt"), folder)


def echoing(app):
    """What is not there is answered with all that was sent."""

    def answer(environ, start_response):
        if "gone" in environ["PATH_INFO"]:
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [f"<Error><Code>No</Code><Message>{SECRET}</Message></Error>".encode()]
        return app(environ, start_response)

    return answer


def upload(endpoint, folder):
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="other",
        aws_secret_access_key="other",
    )
    client.create_bucket(Bucket="bucket")
    for path in folder.iterdir():
        client.put_object(Bucket="bucket", Key=path.name, Body=path.read_bytes())


def holds_none(text):
    found = [secret for secret in SECRETS if secret in text]
    at = text.find(found[0]) if found else 0
    assert not found, f"…{text[max(0, at - 100) : at + 100]}…"


def nothing_below_holds_any(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in SECRETS:
                assert secret.encode() not in content, f"{secret} in {path}"


@pytest.fixture
def logged(caplog):
    """Everything that is logged, at the lowest level, by whomever."""
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("fsspec", "aiohttp", "visdiv_assets", "obstore", "asyncio"):
            caplog.set_level(logging.DEBUG, name)
    caplog.clear()

    def text():
        records = [record for record in caplog.records if not from_tests(record)]
        return "\n".join(
            f"{record.getMessage()} {record.args} {record.exc_text}" for record in records
        )

    return text


def from_tests(record):
    return record.name.partition(".")[0] in ("werkzeug", "botocore", "boto3", "urllib3")


def score(source, store):
    embedder, warehouse = FakeEmbedder(), Warehouse(store / "visdiv.duckdb")
    name = dataset_name_for(source.uri)
    return evaluate(name, open_source(source), embedder, Store(store), warehouse), name, warehouse


def test_an_evaluation_that_partly_fails_keeps_and_says_nothing_secret(far, tmp_path, logged):
    (evaluation, embedded), name, warehouse = score(far.source, tmp_path / "store")
    assert evaluation.n_images == IMAGES
    failed = warehouse.failures(name)
    assert {"gone.png", "text.png"} <= {each.image_id.rpartition("/")[2] for each in failed}
    holds_none(repr(failed) + name)
    holds_none(open_source(far.source).uri)
    holds_none(repr(embedded.index.table.to_pylist()))
    manifest = Store(tmp_path / "store").latest_manifest(name)
    holds_none(repr(manifest.table.to_pylist()) + manifest.fingerprint)
    nothing_below_holds_any(tmp_path / "store")
    holds_none(logged())


def test_an_evaluation_that_fails_entirely_keeps_and_says_nothing_secret(far, tmp_path, logged):
    listed = open_source(far.source)
    names = [item.image_id for item in listed.items()]
    only_bad = far.source.model_copy(update={"include": ["**/gone.png", "**/text.png"]})
    assert names
    with pytest.raises(VisdivError, match="none of the 2 images") as caught:
        score(only_bad, tmp_path / "store")
    holds_none(str(caught.value) + repr(caught.value.__context__))
    nothing_below_holds_any(tmp_path / "store")
    holds_none(logged())


def test_a_source_that_cannot_be_listed_says_nothing_secret(far, tmp_path, logged):
    for name in ("gone.txt", "gone.zip", "gone.parquet", "text.png/list.csv"):
        with pytest.raises(VisdivError) as caught:
            score(far.source.model_copy(update={"uri": renamed(far.source.uri, name)}), tmp_path)
        holds_none(str(caught.value))
        assert name in str(caught.value)
    holds_none(logged())


def renamed(uri, name):
    return uri.replace("list.txt", name)


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:SECRETLOGIN@127.0.0.1:9/{x}",
        "https://me:SECRETLOGIN@127.0.0.1:9/x.zip?sig=SECRETSIGNATURE",
        "https://me:SECRETLOGIN@no-such-host.invalid/x.zip?sig=SECRETSIGNATURE",
        "https://me:SECRETLOGIN/@127.0.0.1:9/x.zip",
        "https://me:SECRETLOGIN@[127/x.zip",
        "https://me:SECRETLOGIN@127.0.0.1:9/unknown?sig=SECRETSIGNATURE",
        "https://me:SECRETLOGIN@127.0.0.1:9/*.tar?sig=SECRETSIGNATURE",
        "s3://me:SECRETLOGIN@[bucket/x",
        "ftp://me:SECRETLOGIN@host/x.zip",
    ],
)
def test_errors_about_an_address_say_nothing_secret(uri, monkeypatch, logged):
    monkeypatch.setattr("visdiv_assets.sources.places.ATTEMPTS", 1)
    monkeypatch.setattr("visdiv_assets.sources.buckets.ATTEMPTS", 1)
    with pytest.raises(VisdivError) as caught:
        list(open_source(uri).items())
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in logged()


def test_options_are_not_part_of_what_settings_show():
    source = SourceSettings(uri="s3://bucket", options={"secret_access_key": SECRET})
    assert SECRET not in repr(source) + str(source)
    with pytest.raises(VisdivError) as caught:
        open_source(SourceSettings(uri="s3://bucket", options={"no_such_option": SECRET}))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{uri: 's3://b', options: {secret_access_key: [SECRETLOGIN]}}",
        "{uri: 's3://b', options: [SECRETLOGIN]}",
        "{uri: 's3://b', options: SECRETLOGIN}",
        "{uri: 's3://b', options: {secret_access_key: {SECRETLOGIN: 1}}}",
        "{uri: 's3://b', optoins: {secret_access_key: SECRETLOGIN}}",
        "{uri: 's3://b', secret_access_key: SECRETLOGIN}",
        "{uri: ['https://me:SECRETLOGIN@host/x.zip']}",
        "['https://me:SECRETLOGIN@host/x.zip']",
        "{uri: x.csv, root: ['https://me:SECRETLOGIN@host/']}",
    ],
)
def test_errors_in_the_settings_say_nothing_secret(tmp_path, source):
    path = tmp_path / "visdiv.yaml"
    path.write_text(f"datasets:\n  far: {{source: {source}}}\n")
    with pytest.raises(VisdivError) as caught:
        load_settings(path).dataset("far")
    assert "far" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def settings_file(folder, far):
    """The dataset, and one with nothing but images that cannot be had."""
    options = "".join(f"{name}: '{value}', " for name, value in far.source.options.items())
    uri, missing = far.source.uri, renamed(far.source.uri, "gone.txt")
    bad = "include: ['**/gone.png', '**/text.png']"
    path = folder / "visdiv.yaml"
    path.write_text(
        "store: store\n"
        "datasets:\n"
        f"  far: {{source: {{uri: '{uri}', options: {{{options}}}}}}}\n"
        f"  broken: {{source: {{uri: '{uri}', options: {{{options}}}, {bad}}}}}\n"
        f"  missing: {{source: {{uri: '{missing}', options: {{{options}}}}}}}\n"
    )
    return path


class FakeEmbedderResource(EmbedderResource):
    def open(self, dataset):
        return FakeEmbedder()


@pytest.mark.slow
def test_dagster_is_told_nothing_secret(far, tmp_path, monkeypatch, logged):
    path = settings_file(tmp_path, far)
    (tmp_path / "dagster").mkdir()
    quiet = {"telemetry": {"enabled": False}}
    settings = SettingsResource(config_path=str(path))
    embedder = FakeEmbedderResource(settings=settings)
    definitions = build_defs(resource_overrides={"settings": settings, "embedder": embedder})
    job = definitions.resolve_job_def("evaluate_dataset")
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster"), overrides=quiet) as instance:
        for dataset, succeeds in (("far", True), ("broken", False), ("missing", False)):
            instance.add_dynamic_partitions("datasets", [dataset])
            result = job.execute_in_process(
                partition_key=dataset, instance=instance, raise_on_error=False
            )
            assert result.success is succeeds
            records = instance.all_logs(result.run_id)
            assert len(records) > 10
            holds_none(repr(records))
    nothing_below_holds_any(tmp_path / "dagster")
    nothing_below_holds_any(tmp_path / "store")
    holds_none(logged())


def test_the_command_line_shows_nothing_secret(far, tmp_path, monkeypatch):
    monkeypatch.delenv("VISDIV_STORE", raising=False)
    path = settings_file(tmp_path, far)
    monkeypatch.setenv("COLUMNS", "1000")
    for command in (["list"], ["score", "missing"], ["history", "far"], ["failures", "far"]):
        result = CliRunner().invoke(app, [*command, "--config", str(path)])
        said = re.sub(r"\s+", "", result.output)
        assert said
        for secret in SECRETS:
            assert re.sub(r"\s+", "", secret) not in said


def test_what_is_raised_has_nothing_secret_in_its_chain(far, tmp_path):
    """A traceback that someone prints would show what an error was raised from."""
    uri = renamed(far.source.uri, "gone.zip")
    with pytest.raises(VisdivError) as caught:
        list(open_source(far.source.model_copy(update={"uri": uri})).items())
    error = caught.value
    while error is not None:
        holds_none(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
