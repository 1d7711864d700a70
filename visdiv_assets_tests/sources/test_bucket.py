"""Object stores: long listings, odd keys, servers that fail, objects that go or change."""

import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.manifest import list_images
from visdiv_assets.sources.opening import open_source
from visdiv_assets.sources.source import read_one
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_images
from visdiv_assets_tests.sources.servers import SECRET, s3_server

KEYS = 2500


class Front:
    """Stands before the server: counts requests for objects, and may spoil them."""

    def __init__(self, app):
        self.app = app
        self.requests = Counter()
        self.behave()

    def behave(self, failures=(), delay=0.0):
        """Every third request is answered with the next of the failures; all wait."""
        self._failures, self._delay = itertools.cycle(failures or [None]), delay
        self._spoil = bool(failures)
        self._turn = itertools.count(1)
        self.failed = 0

    def __call__(self, environ, start_response):
        self.requests[environ["REQUEST_METHOD"], environ["PATH_INFO"]] += 1
        time.sleep(self._delay)
        if self._spoil and next(self._turn) % 3 == 0:
            self.failed += 1
            status, code = next(self._failures)
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]
        return self.app(environ, start_response)


class Bucket:
    """A bucket on a server of the tests' own."""

    def __init__(self, endpoint, front, name):
        self.front, self.name = front, name
        self.options = {
            "endpoint": endpoint,
            "region": "us-east-1",
            "access_key_id": "me",
            "secret_access_key": SECRET,
        }
        self._client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="me",
            aws_secret_access_key=SECRET,
        )
        self._client.create_bucket(Bucket=name)

    def put(self, key, data=b"data"):
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key):
        self._client.delete_object(Bucket=self.name, Key=key)

    def settings(self, prefix="", **more):
        options = {**self.options, **more.pop("options", {})}
        return SourceSettings(uri=f"s3://{self.name}/{prefix}", options=options, **more)

    def source(self, prefix="", **more):
        return open_source(self.settings(prefix, **more))


@pytest.fixture(scope="module")
def server():
    fronts = []

    def wrap(app):
        fronts.append(Front(app))
        return fronts[0]

    with s3_server(wrap) as endpoint:
        yield endpoint, fronts[0]


@pytest.fixture
def bucket(server, request):
    endpoint, front = server
    front.behave()
    front.requests.clear()
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())
    yield Bucket(endpoint, front, f"b-{name[:40]}-{len(name)}".replace("--", "-"))
    front.behave()


# --- listing ---


@pytest.mark.slow
def test_more_keys_than_one_answer_holds_are_listed_completely(bucket):
    keys = [f"deep/{number % 7}/{number:05}.jpg" for number in range(KEYS)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(bucket.put, keys))
    items = list(bucket.source("deep/").items())
    assert sorted(item.image_id for item in items) == sorted(key[5:] for key in keys)
    assert {item.size for item in items} == {4}
    assert bucket.front.requests["GET", f"/{bucket.name}"] >= KEYS // 1000
    [few] = bucket.source("deep/", include=["**/02499.jpg"]).items()
    assert few.image_id.endswith("/02499.jpg")


ODD = [
    "a b.jpg",
    "猫/黒.jpg",
    "Ünïcode.jpg",
    "#hash#.jpg",
    "100%.jpg",
    "%41.jpg",
    "a+b.jpg",
    'it\'s "quoted".jpg',
    "?query=1.jpg",
    "a&b=c;d.jpg",
    r"back\slash.jpg",
    r"\xff.jpg",
    "[1]{2}*.jpg",
    "<tag>.jpg",
    "a:b@c.jpg",
    "🦆.jpg",
    "~.jpg",
]


def test_odd_keys_are_listed_and_read_as_they_are(bucket):
    for key in ODD:
        bucket.put(f"odd keys/{key}", key.encode())
    source = bucket.source("odd keys/")
    ids = sorted(item.image_id for item in source.items())
    assert ids == sorted(key.replace("\\", r"\\") if r"\x" in key else key for key in ODD)
    reads = dict(source.read_all(ids))
    assert sorted(reads.values()) == sorted(key.encode() for key in ODD)


def test_what_is_no_image_is_left_out(bucket):
    for key in ("a.jpg", "b.txt", "folder/", ".hidden.jpg", "deep/c.PNG"):
        bucket.put(key)
    assert sorted(item.image_id for item in bucket.source().items()) == ["a.jpg", "deep/c.PNG"]


def test_a_prefix_is_a_folder_and_no_beginning_of_names(bucket):
    for key in ("cats/a.jpg", "cats-and-dogs/b.jpg"):
        bucket.put(key)
    assert [item.image_id for item in bucket.source("cats").items()] == ["a.jpg"]


# --- servers that fail ---

FAILURES = [("500 Internal Server Error", "InternalError"), ("503 Slow Down", "SlowDown")]


def fill(bucket, count=40, size=5000):
    contents = {f"{number:03}.jpg": bytes([number]) * size for number in range(count)}
    for key, data in contents.items():
        bucket.put(key, data)
    return contents


def read(source):
    ids = sorted(item.image_id for item in source.items())
    reads = dict(source.read_all(ids))
    return {image_id: reads[at] for at, image_id in enumerate(ids)}


@pytest.mark.parametrize("failures", [FAILURES[:1], FAILURES[1:], FAILURES])
def test_a_server_that_fails_now_and_then_gives_every_byte(bucket, failures):
    contents = fill(bucket)
    bucket.front.behave(failures=failures)
    assert read(bucket.source()) == contents
    assert bucket.front.failed > 10


def test_a_slow_server_gives_every_byte(bucket):
    contents = fill(bucket)
    bucket.front.behave(delay=0.1)
    assert read(bucket.source()) == contents


# --- what cannot be listed is never an empty dataset ---


def refused(settings, tmp_path):
    with pytest.raises(VisdivError) as caught:
        evaluate(
            "far",
            open_source(settings),
            FakeEmbedder(),
            Store(tmp_path),
            Warehouse(tmp_path / "visdiv.duckdb"),
        )
    assert SECRET not in str(caught.value)
    assert not (tmp_path / "visdiv.duckdb").exists()
    return str(caught.value)


@pytest.mark.parametrize("name", ["", "*.parquet", "a.zip", "{0..3}.tar", "a.csv", "**/*.jpg"])
def test_a_bucket_that_does_not_exist_is_refused(bucket, tmp_path, name):
    settings = SourceSettings(uri=f"s3://no-such-bucket/{name}", options=bucket.options)
    assert "s3://no-such-bucket" in refused(settings, tmp_path)


@pytest.mark.parametrize("name", ["", "*.parquet", "a.zip", "**/*.jpg"])
def test_wrong_credentials_are_refused(bucket, tmp_path, name):
    bucket.put("a.jpg")
    bucket.front.behave()
    app = bucket.front.app
    bucket.front.app = forbidden
    try:
        assert f"s3://{bucket.name}" in refused(bucket.settings(name), tmp_path)
    finally:
        bucket.front.app = app


def forbidden(environ, start_response):
    start_response("403 Forbidden", [("Content-Type", "application/xml")])
    return [f"<Error><Code>InvalidAccessKeyId</Code><Message>{SECRET}</Message></Error>".encode()]


def test_a_prefix_without_images_is_refused_with_what_there_is(bucket, tmp_path):
    bucket.put("a.txt")
    assert "(1 file left out by its name: 1 × .txt)" in refused(bucket.settings(), tmp_path)


def test_a_server_that_is_not_there_is_refused(bucket, tmp_path):
    settings = bucket.settings(options={"endpoint": "http://127.0.0.1:9"})
    assert f"cannot list s3://{bucket.name}" in refused(settings, tmp_path)


# --- objects that go or change ---


@pytest.fixture
def photos(bucket, tmp_path):
    paths = sorted(write_images(tmp_path / "images", 6).iterdir())
    for path in paths:
        bucket.put(path.name, path.read_bytes())
    return paths


def embed(bucket, store):
    source = bucket.source()
    bucket.front.requests.clear()
    index, n_new = embed_manifest("far", list_images(source), source, FakeEmbedder(), store)
    got = [path for method, path in bucket.front.requests if method == "GET" and "png" in path]
    return index, n_new, sorted(path.rpartition("/")[2] for path in got)


def test_an_object_deleted_since_it_was_listed_is_a_failure_with_a_reason(bucket, photos, tmp_path):
    source = bucket.source()
    manifest = list_images(source)
    bucket.delete("003.png")
    store = Store(tmp_path / "store")
    index, n_new = embed_manifest("far", manifest, source, FakeEmbedder(), store)
    assert n_new == 5
    [(image_id, reason)] = index.failures()
    assert image_id == "003.png"
    assert reason.startswith("FileNotFoundError: ")
    assert "not found" in reason.lower()


def test_unchanged_objects_are_not_read_again(bucket, photos, tmp_path):
    store = Store(tmp_path / "store")
    assert embed(bucket, store)[1:] == (6, [path.name for path in photos])
    assert embed(bucket, store)[1:] == (0, [])


def test_an_object_that_is_written_over_is_read_again(bucket, photos, tmp_path):
    store = Store(tmp_path / "store")
    embed(bucket, store)
    bucket.put("001.png", write_images(tmp_path / "more", 8).joinpath("007.png").read_bytes())
    bucket.put("002.png", photos[2].read_bytes())  # the same bytes have the same etag
    assert embed(bucket, store)[1:] == (1, ["001.png"])


def test_the_version_is_the_etag(bucket, photos):
    before = {item.image_id: item.version for item in bucket.source().items()}
    bucket.put("001.png", b"other")
    after = {item.image_id: item.version for item in bucket.source().items()}
    assert [key for key in before if before[key] != after[key]] == ["001.png"]
    assert all(len(version) == 32 for version in after.values())


def test_an_object_larger_than_any_image_is_not_fetched(bucket, monkeypatch):
    monkeypatch.setattr("visdiv_assets.sources.places.MAX_IMAGE_BYTES", 10)
    bucket.put("a.jpg", b"x" * 11)
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_one(bucket.source(), "a.jpg")
