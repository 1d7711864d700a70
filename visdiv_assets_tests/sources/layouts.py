"""The same images, stored in every way that a source can read.

Each function takes a folder of images and an empty one, and returns the source's settings.
"""

import csv
import json
import tarfile
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from visdiv_assets.settings.model import SourceSettings


def images_in(photos: Path) -> list[Path]:
    return sorted(path for path in photos.rglob("*") if path.is_file())


def directory(photos: Path, folder: Path) -> SourceSettings:
    return SourceSettings(uri=str(photos))


def glob(photos: Path, folder: Path) -> SourceSettings:
    return SourceSettings(uri=f"{photos}/**/*.jpg")


def zip_archive(photos: Path, folder: Path) -> SourceSettings:
    with zipfile.ZipFile(folder / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in images_in(photos):
            archive.write(path, path.relative_to(photos))
    return SourceSettings(uri=f"{folder}/photos.zip")


def tar_archive(photos: Path, folder: Path) -> SourceSettings:
    with tarfile.open(folder / "photos.tar", "w") as archive:
        archive.add(photos, "photos")
    return SourceSettings(uri=f"{folder}/photos.tar")


def packed_tar(photos: Path, folder: Path) -> SourceSettings:
    with tarfile.open(folder / "photos.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(photos, "photos")
    return SourceSettings(uri=f"{folder}/photos.tar.gz")


def webdataset(photos: Path, folder: Path) -> SourceSettings:
    """Three shards, two images a sample, and a class beside each."""
    paths = images_in(photos)
    for shard in range(3):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as archive:
            for number, path in enumerate(paths[shard::3]):
                sample = f"{number // 2:06}"
                side = ("left", "right")[number % 2]
                archive.add(path, f"{sample}.{side}{path.suffix}")
                if number % 2:
                    label = folder / "label"
                    label.write_text(str(number % 5))
                    archive.add(label, f"{sample}.cls")
    return SourceSettings(uri=f"{folder}/{{00000..00002}}.tar")


def parquet_struct(photos: Path, folder: Path) -> SourceSettings:
    """As Hugging Face stores images, in two files."""
    paths = images_in(photos)
    for part in range(2):
        cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths[part::2]]
        labels = [number % 3 for number in range(len(cells))]
        table = pa.table({"image": cells, "label": labels})
        pq.write_table(table, folder / f"train-{part}.parquet", row_group_size=20)
    return SourceSettings(uri=f"{folder}/train-*.parquet")


def parquet_bytes(photos: Path, folder: Path) -> SourceSettings:
    cells = [path.read_bytes() for path in images_in(photos)]
    table = pa.table({"jpg": cells, "key": [str(at) for at in range(len(cells))]})
    pq.write_table(table, folder / "part.parquet", row_group_size=50)
    return SourceSettings(uri=f"{folder}/part.parquet")


def parquet_lists(photos: Path, folder: Path) -> SourceSettings:
    """Several images a row, none in some, as FineVision has them."""
    cells = [{"bytes": path.read_bytes(), "path": None} for path in images_in(photos)]
    rows = [cells[:4], [], *([cell] for cell in cells[4:9]), cells[9:]]
    texts = [[{"user": "what is it?", "assistant": "a picture"}] for _ in rows]
    pq.write_table(pa.table({"images": rows, "texts": texts}), folder / "train.parquet")
    return SourceSettings(uri=f"{folder}/train.parquet")


def _dataset(photos: Path) -> datasets.Dataset:
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in images_in(photos)],
        "label": [number % 2 for number, _ in enumerate(images_in(photos))],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    return datasets.Dataset.from_dict(rows, features=features)


def saved_to_disk(photos: Path, folder: Path) -> SourceSettings:
    _dataset(photos).save_to_disk(str(folder / "saved"), num_shards=2)
    return SourceSettings(uri=f"{folder}/saved")


def saved_splits(photos: Path, folder: Path) -> SourceSettings:
    whole = _dataset(photos)
    half = len(whole) // 2
    splits = {
        "train": whole.select(range(half)),
        "test": whole.select(range(half, len(whole))),
    }
    datasets.DatasetDict(splits).save_to_disk(str(folder / "splits"))
    return SourceSettings(uri=f"{folder}/splits")


def text_list(photos: Path, folder: Path) -> SourceSettings:
    names = "\n".join(str(path.relative_to(photos)) for path in images_in(photos))
    (folder / "list.txt").write_text(names + "\n")
    return SourceSettings(uri=f"{folder}/list.txt", root=str(photos))


def csv_list(photos: Path, folder: Path) -> SourceSettings:
    with (folder / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "filename"])
        for number, path in enumerate(images_in(photos)):
            rows.writerow([f"class {number % 3}", str(path)])
    return SourceSettings(uri=f"{folder}/list.csv", root=str(photos))


def json_lines(photos: Path, folder: Path) -> SourceSettings:
    lines = [
        json.dumps({"image_path": str(path.relative_to(photos)), "label": "x"})
        for path in images_in(photos)
    ]
    (folder / "list.jsonl").write_text("\n".join(lines))
    return SourceSettings(uri=f"{folder}/list.jsonl", root=str(photos))


def coco(photos: Path, folder: Path) -> SourceSettings:
    paths = images_in(photos)
    content = {
        "images": [
            {"id": at, "file_name": str(path.relative_to(photos))} for at, path in enumerate(paths)
        ],
        "annotations": [
            {"id": at, "image_id": at, "category_id": at % 2, "segmentation": [[1.5, 2.5]]}
            for at in range(len(paths))
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return SourceSettings(uri=f"{folder}/instances.json", root=str(photos))


LOCAL = (
    directory,
    glob,
    zip_archive,
    tar_archive,
    packed_tar,
    webdataset,
    parquet_struct,
    parquet_bytes,
    parquet_lists,
    saved_to_disk,
    saved_splits,
    text_list,
    csv_list,
    json_lines,
    coco,
)
