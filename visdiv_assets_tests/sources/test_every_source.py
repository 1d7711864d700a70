"""The same photographs, however they are stored, are the same dataset."""

import json
import shutil
import tempfile
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.weights import ONNX_CHECKPOINT
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.sources.opening import open_source
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets_tests.conftest import PHOTOS, Demo
from visdiv_assets_tests.sources import layouts
from visdiv_assets_tests.sources.servers import SECRET, http_server, s3_server


def scores_the_same_and_embeds_nothing(demo: Demo, source: SourceSettings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = shutil.copytree(demo.root, Path(folder) / "store")
        scores_the_same(demo, source, Store(root), Warehouse(root / "visdiv.duckdb"))


def scores_the_same(demo: Demo, source: SourceSettings, store: Store, warehouse: Warehouse) -> None:
    name = "again"
    embedder = SSCDEmbedder(ONNX_CHECKPOINT)
    evaluation, embedded = evaluate(name, open_source(source), embedder, store, warehouse)
    assert embedded.n_new == 0
    assert (evaluation.n_images, evaluation.n_failed) == (213, 0)
    assert evaluation.diversity_score == demo.evaluation.diversity_score  # to the last bit
    assert evaluation.effective_rank == demo.evaluation.effective_rank


@pytest.mark.slow
@pytest.mark.parametrize("layout", layouts.LOCAL, ids=lambda layout: layout.__name__)
def test_the_demo_score_is_the_same_to_the_last_bit(demo, tmp_path, layout):
    scores_the_same_and_embeds_nothing(demo, layout(PHOTOS, tmp_path))


@pytest.mark.slow
def test_an_object_store_gives_the_same_score(demo, tmp_path):
    layouts.parquet_struct(PHOTOS, tmp_path)
    layouts.webdataset(PHOTOS, tmp_path)
    with s3_server() as endpoint:
        options = {
            "endpoint": endpoint,
            "region": "us-east-1",
            "access_key_id": "me",
            "secret_access_key": SECRET,
        }
        make_bucket(endpoint)
        bucket = S3Store("photos", client_options={"allow_http": True}, **options)
        for path in PHOTOS.iterdir():
            obstore.put(bucket, f"deep/er/{path.name}", path)
        for path in tmp_path.glob("*.*"):
            obstore.put(bucket, path.name, path)
        for uri in ("deep/", "**/*.jpg", "train-*.parquet", "{00000..00002}.tar"):
            source = SourceSettings(uri=f"s3://photos/{uri}", options=options)
            scores_the_same_and_embeds_nothing(demo, source)


def make_bucket(endpoint: str) -> None:
    import boto3

    boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="me",
        aws_secret_access_key=SECRET,
    ).create_bucket(Bucket="photos")


@pytest.mark.slow
def test_a_web_server_gives_the_same_score(demo, tmp_path):
    layouts.zip_archive(PHOTOS, tmp_path)
    (tmp_path / "photos").symlink_to(PHOTOS)
    names = [f"photos/{path.name}" for path in PHOTOS.iterdir()]
    (tmp_path / "list.txt").write_text("\n".join(names))
    with http_server(tmp_path) as address:
        (tmp_path / "list.jsonl").write_text(
            "\n".join(json.dumps({"url": f"{address}/{name}"}) for name in names)
        )
        for name in ("photos.zip", "list.txt", "list.jsonl"):
            scores_the_same_and_embeds_nothing(demo, SourceSettings(uri=f"{address}/{name}"))


def metadata(source: SourceSettings) -> list[dict[str, str] | None]:
    return [item.metadata for item in open_source(source).items()]


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (layouts.webdataset, {"cls": "3"}),
        (layouts.parquet_struct, {"label": "2"}),
        (layouts.saved_to_disk, {"label": "dog"}),
        (layouts.csv_list, {"label": "class 1"}),
        (layouts.coco, {"id": "1", "category": "dog"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_labels_come_along(tmp_path, layout, expected):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(PHOTOS.iterdir())[:20]:
        shutil.copy(path, photos)
    folder = tmp_path / "layout"
    folder.mkdir()
    assert expected in metadata(layout(photos, folder))


def test_several_images_in_a_row_or_a_sample_are_counted_as_images(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(PHOTOS.iterdir())[:20]:
        shutil.copy(path, photos)
    for layout, expected in ((layouts.parquet_lists, 20), (layouts.webdataset, 20)):
        folder = tmp_path / layout.__name__
        folder.mkdir()
        items = list(open_source(layout(photos, folder)).items())
        assert len({item.image_id for item in items}) == expected
        assert len({Path(item.image_id).stem.partition(".")[0] for item in items}) < expected
