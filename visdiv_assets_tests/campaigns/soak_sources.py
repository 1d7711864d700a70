"""The datasets of a soak: tiny images that are different enough, or not.

Here: what the images are, and how they are kept. The cheap model makes vectors of 48 thumbnails'
values, so that the score follows from how many different images there are: `MANY` is far above the
threshold, all else far below. Not here: when they change.
"""

import io
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from visdiv_assets_tests.campaigns.soak_schedule import Dataset

THRESHOLD = 0.1
MANY, ALIKE, FEW = "many", "alike", "few"

# Different images, and copies of the first one.
_COUNTS = {MANY: (12, 0), ALIKE: (2, 9), FEW: (3, 0)}


def picture(*seeds: int) -> bytes:
    """A small PNG of noise; other seeds give another."""
    noise = np.random.default_rng(seeds).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def pictures(state: str, *seeds: int) -> dict[str, bytes]:
    """Images by name, in one of the three states."""
    different, copies = _COUNTS[state]
    prefix = "-".join(map(str, seeds))
    made = [picture(*seeds, at) for at in range(different)]
    return {f"{prefix}-{at:02}.png": data for at, data in enumerate([*made, *made[:1] * copies])}


class Images:
    """The images of one dataset.

    Args:
        dataset: which one.
        number: its place among all, from which its images follow.
        folder: where it is kept.
        address: of the same on the web.
    """

    def __init__(self, dataset: Dataset, number: int, folder: Path, address: str) -> None:
        self.dataset, self._number = dataset, number
        self._folder, self._address = folder, address
        self._lock, self._version, self.state = threading.Lock(), 0, MANY
        folder.mkdir(parents=True)
        self.put(MANY)

    @property
    def uri(self) -> str:
        where = f"{self._address}/" if self.dataset.is_on_the_web else f"{self._folder}/"
        return {
            "folder": f"{self._folder}",
            "list": f"{where}list.txt",
            "web list": f"{where}list.txt",
            "tar": f"{where}images.tar",
            "zip": f"{where}images.zip",
            "parquet": f"{where}images.parquet",
        }[self.dataset.layout]

    def put(self, state: str | None = None) -> None:
        """Other images, in this state or the same as before."""
        with self._lock:
            self.state = state or self.state
            self._version += 1
            images = pictures(self.state, self._number, self._version)
            if self.dataset.layout in ("folder", "list", "web list"):
                self._put_files(images)
            else:
                self._replace(f"images.{self.dataset.layout}", _packed(self.dataset.layout, images))

    def hide(self) -> None:
        """Away with the folder."""
        with self._lock:
            self._folder.rename(self._hidden)

    def show(self) -> None:
        """There it is again, if it was away."""
        with self._lock:
            if self._hidden.exists():
                self._hidden.rename(self._folder)

    @property
    def _hidden(self) -> Path:
        return self._folder.with_name(f".{self._folder.name}")

    def _put_files(self, images: dict[str, bytes]) -> None:
        """New ones come before old ones go, as when somebody copies by hand."""
        old = list(self._folder.glob("*.png"))
        for name, data in images.items():
            (self._folder / name).write_bytes(data)
        if self.dataset.layout != "folder":
            self._replace("list.txt", "".join(f"{name}\n" for name in images).encode())
        for path in old:
            path.unlink()

    def _replace(self, name: str, content: bytes) -> None:
        partial = self._folder / f".{name}"
        partial.write_bytes(content)
        partial.replace(self._folder / name)


def _packed(layout: str, images: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    if layout == "tar":
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, data in images.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    elif layout == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in images.items():
                archive.writestr(name, data)
    else:
        pq.write_table(pa.table({"image": list(images.values()), "name": list(images)}), file)
    return file.getvalue()
