"""Places where a store may be kept, each with a way to look at its files and to spoil them."""

import contextlib
import copy
import io
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import obstore
import pytest
from moto.backends import get_backend

from visdiv_assets.store.bucket import Bucket
from visdiv_assets.store.cache import Cache
from visdiv_assets.store.objects import Folder, Objects
from visdiv_assets.store.store import Store
from visdiv_assets_tests.sources.servers import SECRET, s3_server

ACCOUNT, PARTITION = "123456789012", "aws"
BOTH = ("disk", pytest.param("bucket", marks=pytest.mark.slow))

_numbers = itertools.count()


class RemotePath:
    """An object, or all below a prefix: as much of `Path` as tests of the store need."""

    def __init__(self, store: Any, name: str) -> None:
        self._store, self.relative = store, name

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self._store, f"{self.relative}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        return self.relative.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self._store, self.relative.rpartition("/")[0])

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    def with_suffix(self, suffix: str) -> "RemotePath":
        return self.parent / f"{self.stem}{suffix}"

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        return bytes(obstore.get(self._store, self.relative).bytes())

    def write_bytes(self, content: bytes) -> None:
        obstore.put(self._store, self.relative, content)

    def unlink(self) -> None:
        obstore.head(self._store, self.relative)
        obstore.delete(self._store, self.relative)

    def exists(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            obstore.head(self._store, self.relative)
            return True
        return any(obstore.list(self._store, self.relative))

    def rglob(self, pattern: str) -> Iterator["RemotePath"]:
        for page in obstore.list(self._store, self.relative or None):
            for meta in page:
                if fnmatch(meta["path"].rpartition("/")[2], pattern):
                    yield RemotePath(self._store, meta["path"])

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        whole = f"{self.relative}/{pattern}".lstrip("/")
        for each in self.rglob("*"):
            if each.relative.count("/") == whole.count("/") and fnmatch(each.relative, whole):
                yield each

    def iterdir(self) -> Iterator["RemotePath"]:
        return self.glob("*")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.relative == other.relative

    def __hash__(self) -> int:
        return hash(self.relative)


class DiskHome:
    """A store in a folder."""

    kind = "disk"

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"

    def objects(self) -> Objects:
        """Where its files are, as a new process sees them."""
        return Folder(self.root)

    def store(self) -> Store:
        """The store, as in a new process."""
        return Store(self.objects())

    def saved(self) -> Path:
        """A copy of all its files."""
        return Path(shutil.copytree(self.root, self.root.with_name("saved")))

    def restore(self, saved: Path) -> None:
        """What was saved, and nothing else."""
        shutil.rmtree(self.root)
        shutil.copytree(saved, self.root)

    def grow_old(self, days: float = 10) -> None:
        """Make all files older."""
        for path in self.root.rglob("*"):
            if path.is_file():
                past = path.stat().st_mtime - days * 86_400
                os.utime(path, (past, past))


class BucketHome:
    """A store in a bucket of its own, with a cache of its own."""

    kind = "bucket"

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.bucket = f"bucket-{next(_numbers)}"
        get_backend("s3")[ACCOUNT][PARTITION].create_bucket(self.bucket, "us-east-1")
        self.uri = f"s3://{self.bucket}/some/store"
        self.options = {
            "endpoint": endpoint,
            "region": "us-east-1",
            "access_key_id": "TESTING-KEY",
            "secret_access_key": SECRET,
        }
        self.cache = folder / "cache"
        self.root = RemotePath(self._bucket()._store, "")

    def _bucket(self) -> Bucket:
        return Bucket(self.uri, self.options, Cache(self.cache, 10**9))

    def objects(self) -> Objects:
        """Where its files are, as a new process sees them."""
        return self._bucket()

    def store(self) -> Store:
        """The store, as in a new process."""
        return Store(self.objects())

    @property
    def _keys(self) -> Any:
        return get_backend("s3")[ACCOUNT][PARTITION].buckets[self.bucket].keys

    def saved(self) -> dict[str, Any]:
        """A copy of all its files."""
        return {name: copy.copy(key) for name, key in self._keys.items()}

    def restore(self, saved: dict[str, Any]) -> None:
        """What was saved, and nothing else."""
        self._keys.clear()
        for name, key in saved.items():
            self._keys[name] = copy.copy(key)

    def grow_old(self, days: float = 10) -> None:
        """Make all files older."""
        for key in self._keys.values():
            key.last_modified = key.last_modified - timedelta(days=days)


Home = DiskHome | BucketHome


@contextlib.contextmanager
def homes(kind: str) -> Iterator[Callable[[Path], Home]]:
    """What makes homes of a kind in a folder."""
    if kind == "disk":
        yield DiskHome
    else:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        with s3_server() as endpoint:
            yield lambda folder: BucketHome(folder, endpoint)


@contextlib.contextmanager
def new_home(make: Callable[[Path], Home]) -> Iterator[Home]:
    """A home for one example of many."""
    with tempfile.TemporaryDirectory() as folder:
        yield make(Path(folder))
