"""A store in a bucket: the same results as on a disk, and clear words when the bucket fails."""

import contextlib
import itertools
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from moto.backends import get_backend

from visdiv_assets.errors import Unreachable, VisdivError
from visdiv_assets.sources import buckets
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.store.bucket import PIECE_BYTES, Bucket
from visdiv_assets.store.cache import Cache
from visdiv_assets.store.cleaning import verify
from visdiv_assets.store.objects import Folder
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.embedding.fakes import FakeEmbedder, write_images
from visdiv_assets_tests.sources.servers import SECRET, s3_server
from visdiv_assets_tests.store.homes import ACCOUNT, PARTITION, BucketHome

ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>no</Message></Error>'


class Troubled:
    """A server in front of which something can go wrong with each request.

    Attributes:
        answer: from method and path to a status and an error code, or None if the request is
            passed on.
    """

    def __init__(self):
        self.answer = lambda method, path: None
        self.asked = []
        self._turn = threading.Lock()

    def __call__(self, app):
        def wrapped(environment, start):
            method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
            self.asked.append((method, path))
            trouble = self.answer(method, path)
            if trouble is None:
                with self._turn:  # conditions are checked and carried out at once, as by S3
                    return list(app(environment, start))
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            status, code = trouble
            body = b"" if method == "HEAD" else ERROR.format(code).encode()
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]

        return wrapped


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    trouble = Troubled()
    with s3_server(trouble) as endpoint:
        yield trouble, endpoint


@pytest.fixture
def trouble(server):
    server[0].answer = lambda method, path: None
    server[0].asked.clear()
    return server[0]


@pytest.fixture
def home(server, trouble, tmp_path):
    return BucketHome(tmp_path, server[1])


def score(store, tmp_path, images="images"):
    source = DirectorySource(tmp_path / images)
    warehouse = Warehouse(tmp_path / "results/visdiv.duckdb")
    return evaluate("dataset", source, FakeEmbedder(), store, warehouse)


# --- the same as on a disk ---


def test_the_same_images_give_the_same_evaluation_to_the_last_bit(home, tmp_path):
    for name in "ab":
        write_images(tmp_path / f"images/{name}", 6 if name == "a" else 9)
    on_disk, in_bucket = Store(tmp_path / "disk"), home.store()
    one, _ = score(on_disk, tmp_path)
    other, _ = score(in_bucket, tmp_path)
    assert replace(
        other,
        evaluation_id=one.evaluation_id,
        number=one.number,
        evaluated_at=one.evaluated_at,
        seconds=one.seconds,
    ) == one  # fmt: skip
    read = [store.read_sample(*one.where) for store in (on_disk, in_bucket)]
    assert read[0].moments.outer.tobytes() == read[1].moments.outer.tobytes()
    assert read[0].rows.tobytes() == read[1].rows.tobytes()
    names = [sorted(store.segment_names("fake")) for store in (on_disk, in_bucket)]
    assert names[0] == names[1]
    for name in names[0]:
        assert on_disk.rows("fake", name).tobytes() == in_bucket.rows("fake", name).tobytes()


def test_a_store_is_copied_from_a_disk_to_a_bucket_and_goes_on(home, tmp_path):
    write_images(tmp_path / "images", 6)
    on_disk = Store(tmp_path / "disk")
    before, _ = score(on_disk, tmp_path)
    for path in (tmp_path / "disk").rglob("*"):
        if path.is_file() and path.name != ".update.lock":
            home.root.__truediv__(str(path.relative_to(tmp_path / "disk"))).write_bytes(
                path.read_bytes()
            )
    after, embedded = score(home.store(), tmp_path)
    assert (after.diversity_score, embedded.n_new) == (before.diversity_score, 0)


def test_what_was_read_once_is_not_fetched_again(home, trouble, tmp_path):
    write_images(tmp_path / "images", 6)
    evaluation, _ = score(home.store(), tmp_path)
    trouble.asked.clear()
    store = home.store()  # another process on this machine
    for name in store.segment_names("fake"):
        store.rows("fake", name)
    store.read_index(*evaluation.where)
    fetched = [path for method, path in trouble.asked if method == "GET" and "." in path]
    assert fetched == []


def test_an_object_of_which_another_machine_wrote_a_new_version_is_fetched_again(home, tmp_path):
    here, there = home.objects(), Bucket(home.uri, home.options, Cache(tmp_path / "2", 10**9))
    for content in (b"one", b"another"):
        there.write("moments/x", lambda file, content=content: file.write(content))
        assert here.local("moments/x").read_bytes() == content


def test_more_than_a_thousand_files_are_listed(home):
    backend = get_backend("s3")[ACCOUNT][PARTITION]
    for number in range(2100):
        backend.put_object(home.bucket, f"some/store/embeddings/fake/{number:05}.parquet", b"x")
    backend.put_object(home.bucket, "some/store/embeddings/fakes/1.parquet", b"x")
    backend.put_object(home.bucket, "some/stores/embeddings/fake/1.parquet", b"x")
    store = home.store()
    assert len(store.segment_names("fake")) == 2100
    assert store.model_ids() == ["fake", "fakes"]


def test_parts_of_a_file_are_read_at_any_place(home):
    content = np.random.default_rng(0).bytes(2 * PIECE_BYTES + 1000)
    objects = home.objects()
    objects.write("x", lambda file: file.write(content))
    elsewhere = Bucket(home.uri, home.options, Cache(home.cache.with_name("2"), 10**9))
    for fresh in (False, True):
        size, read = (elsewhere if fresh else objects).ranges("x")
        assert size == len(content)
        edges = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, size]
        for start, end in itertools.combinations(edges, 2):
            assert read(start, end) == content[start:end]


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_of_changes_at_the_same_time_none_is_lost(home, tmp_path, kind):
    def objects():
        return Folder(tmp_path / "disk") if kind == "disk" else home.objects()

    def count(_):
        for _ in range(10):
            objects().update("count", lambda before: str(int(before or b"0") + 1).encode())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count, range(4)))
    assert objects().local("count").read_bytes() == b"40"


def test_a_file_that_shall_stay_as_it_is_stays(home):
    objects = home.objects()
    objects.update("x", lambda before: None)
    with pytest.raises(FileNotFoundError):
        objects.local("x")
    objects.update("x", lambda before: b"1")
    version = objects.about("x").version
    objects.update("x", lambda before: None)
    assert objects.about("x").version == version


# --- when the bucket fails ---


def failing(times, status="503 Slow Down", code="SlowDown", only=".*"):
    """Answers that fail so many times for each request, then pass."""
    seen, lock = {}, threading.Lock()

    def answer(method, path):
        with lock:
            seen[method, path] = seen.get((method, path), 0) + 1
            fails = seen[method, path] <= times and re.fullmatch(only, f"{method} {path}")
        return (status, code) if fails else None

    return answer


def test_requests_that_fail_twice_are_asked_again(home, trouble, tmp_path):
    write_images(tmp_path / "images", 6)
    trouble.answer = failing(2)
    evaluation, embedded = score(home.store(), tmp_path)
    assert (evaluation.n_images, embedded.n_new) == (6, 6)
    trouble.answer = lambda method, path: None
    assert verify(home.store()) == []


@pytest.mark.parametrize(
    "only",
    [".*", "PUT .*npy", "PUT .*parquet", "GET .*", "HEAD .*", "PUT .*npz", "PUT .*newest"],
)
def test_a_bucket_that_fails_for_good_loses_nothing(home, trouble, tmp_path, monkeypatch, only):
    monkeypatch.setattr(buckets, "ATTEMPTS", 1)
    write_images(tmp_path / "images", 6)
    first, _ = score(home.store(), tmp_path)
    write_images(tmp_path / "images", 9)
    trouble.answer = failing(10**9, only=only)
    with contextlib.suppress(Unreachable):
        score(home.store(), tmp_path)
    with pytest.raises(Unreachable, match=r"cannot \w+ s3://bucket-\d+/some/store.*503"):
        _ask(home, only)
    trouble.answer = lambda method, path: None
    after, _ = score(home.store(), tmp_path)
    assert (after.n_images, after.n_failed) == (9, 0)
    assert verify(home.store()) == []
    assert home.store().read_sample(*first.where).moments.n == 6


def _ask(home, only):
    """One request of the kind that fails."""
    objects = home.objects()
    ending = only.rpartition("*")[2]
    if only.startswith("PUT"):
        objects.write(f"x{ending}", lambda file: file.write(b"1"))
    elif only.startswith("HEAD"):
        objects.about("manifests/dataset/latest")
    else:
        objects.head("manifests/dataset/latest", 10)


def refusing(methods, status, code):
    return lambda method, path: (status, code) if method in methods else None


def test_a_bucket_that_may_only_be_read_can_be_read_and_says_what_it_refuses(
    home, trouble, tmp_path
):
    write_images(tmp_path / "images", 6)
    before, _ = score(home.store(), tmp_path)
    trouble.answer = refusing(("PUT", "POST", "DELETE"), "403 Forbidden", "AccessDenied")
    assert home.store().read_sample(*before.where).moments.n == 6
    write_images(tmp_path / "images", 7)
    with pytest.raises(VisdivError, match=r"cannot write s3://.*: access is denied$"):
        score(home.store(), tmp_path)
    trouble.answer = lambda method, path: None
    assert verify(home.store()) == []
    assert home.store().latest_manifest("dataset").fingerprint == before.manifest_fingerprint


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("403 Forbidden", "InvalidAccessKeyId", "the credentials are not accepted"),
        ("403 Forbidden", "SignatureDoesNotMatch", "the credentials are not accepted"),
        ("403 Forbidden", "AccessDenied", "access is denied"),
        ("404 Not Found", "NoSuchBucket", "there is no such bucket"),
    ],
)
def test_what_the_server_refuses_is_said_in_words(home, trouble, status, code, said, tmp_path):
    write_images(tmp_path / "images", 3)
    trouble.answer = refusing(("GET", "PUT", "POST"), status, code)
    uses = [
        lambda: home.store().segment_names("fake"),
        lambda: home.store().write_picture("birds", "x", b"1"),
        lambda: home.store().latest_fingerprint("birds"),
        lambda: score(home.store(), tmp_path),
    ]
    for use in uses:
        with pytest.raises(VisdivError, match=said) as caught:
            use()
        assert "<" not in str(caught.value)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["AccessDenied", "NoSuchBucket", "403 Forbidden", "169.254.169.254"]
)
def test_a_dataset_may_be_called_like_a_refusal(home, name):
    assert home.store().latest_fingerprint(name) is None
    with pytest.raises(VisdivError, match="has never been evaluated"):
        home.store().latest_manifest(name)


def test_rows_that_wait_are_committed_once_the_bucket_answers_again(home, trouble, monkeypatch):
    monkeypatch.setattr(buckets, "ATTEMPTS", 0)
    store = home.store()
    left = [1]

    def answer(method, path):
        if method == "PUT" and left:
            left.pop()
            return "503 Slow Down", "SlowDown"
        return None

    def write():
        with store.segment_writer("fake") as writer:
            for number in range(3):
                writer.add(bytes([number + 1]) * 16, np.array([0.5, 0.5], dtype=np.float32))

    trouble.answer = answer
    with pytest.raises(Unreachable):
        write()
    assert len(store.key_index("fake")) == 3


def test_a_verification_of_a_bucket_that_is_gone_says_so_once(home, trouble, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "ATTEMPTS", 0)
    write_images(tmp_path / "images", 6)
    score(home.store(), tmp_path)
    trouble.answer = failing(10**9, only="HEAD .*|GET .*npy|GET .*parquet")
    with pytest.raises(Unreachable):
        verify(home.store())


def test_what_is_damaged_in_the_bucket_is_found_though_a_copy_is_sound(home, tmp_path):
    write_images(tmp_path / "images", 6)
    score(home.store(), tmp_path)
    [path] = home.root.glob("moments/dataset/fake/*.npz")
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    assert len(verify(home.store())) == 1


def test_a_copy_that_goes_while_it_is_read_is_no_damage(home, tmp_path, monkeypatch):
    write_images(tmp_path / "images", 6)
    score(home.store(), tmp_path)
    store = home.store()
    [name] = store.segment_names("fake")
    monkeypatch.setattr(type(store.objects), "local", lambda *_, **__: tmp_path / "gone")
    with pytest.raises(VisdivError, match="has gone meanwhile; try again"):
        store.rows("fake", name)
    monkeypatch.undo()
    assert home.store().segment_names("fake") == [name]


def test_a_bucket_that_does_not_exist_is_named(home, tmp_path):
    gone = Bucket("s3://no-such-bucket/x", home.options, Cache(tmp_path / "cache", 10**9))
    with pytest.raises(VisdivError, match=r"s3://no-such-bucket/x.*there is no such bucket"):
        Store(gone).datasets()
    with pytest.raises(VisdivError, match="there is no such bucket"):
        Store(gone).write_picture("birds", "x", b"1")


def test_missing_credentials_are_said_with_what_to_set(home, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(buckets, "ATTEMPTS", 0)
    options = {name: home.options[name] for name in ("endpoint", "region")}
    objects = Bucket(home.uri, options, Cache(tmp_path / "cache", 10**9), patience=0.5)
    with pytest.raises(VisdivError, match=r"credentials|cannot connect|does not answer"):
        Store(objects).datasets()


def test_a_server_that_is_gone_is_unreachable(home, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "ATTEMPTS", 0)
    options = {**home.options, "endpoint": "http://127.0.0.1:9"}
    objects = Bucket(home.uri, options, Cache(tmp_path / "cache", 10**9))
    with pytest.raises(Unreachable, match="cannot connect to the server"):
        Store(objects).datasets()


def test_damage_in_a_bucket_is_set_aside_only_if_the_bucket_has_it(home, tmp_path):
    write_images(tmp_path / "images", 6)
    score(home.store(), tmp_path)
    for path in home.cache.rglob("*"):  # all copies
        if path.is_file():
            path.write_bytes(b"damaged")
    store = home.store()
    [name] = store.segment_names("fake")
    assert len(store.rows("fake", name)) == 6
    assert verify(home.store()) == []
    path = home.root / f"embeddings/fake/{name}.npy"
    rows = np.load(BytesIO(path.read_bytes()))
    rows[0] = 0
    file = BytesIO()
    np.save(file, rows)
    path.write_bytes(file.getvalue())
    _, embedded = score(home.store(), tmp_path)
    assert embedded.n_new == 6
