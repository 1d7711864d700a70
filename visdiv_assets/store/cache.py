"""Copies on this machine of what is in a bucket, up to a size.

Here: keeping, finding and verifying them; the least recently used go first. Not here: fetching
them (`bucket.py`).

    <folder>/<key>/<BLAKE2b of the content>

A copy that does not have its hash is as good as none. Any part of the folder may be deleted at any
time, and processes may share it.
"""

import contextlib
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from visdiv_assets.errors import VisdivError
from visdiv_assets.store.objects import TEMPORARY, Write

DIGEST_BYTES = 16
KEY = re.compile(r"[0-9a-f]{32}")
# What was used so shortly ago may be about to be opened, so it stays for now.
IN_USE_SECONDS = 60.0
# A temporary file that is older than this belongs to no process that still runs.
LEFTOVER_SECONDS = 24 * 3600.0
# So much of the limit is left when there was too much, so that not each copy makes it look again.
ROOM = 0.9
TRIES = 20


class _Copy(NamedTuple):
    used: float
    size: int
    path: Path


class Cache:
    """A folder of copies, created at the first one."""

    def __init__(
        self, folder: Path, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        """A cache in a folder; it may hold copies already.

        Args:
            folder: where the copies are; nothing else may be in it.
            max_bytes: how much they may take. What was used within a minute is not removed.
            clock: tells the Unix time.
        """
        self._folder, self._max_bytes, self._clock = folder, max_bytes, clock
        self._sound: set[tuple[str, int, int]] = set()
        self._lock = threading.Lock()
        self._size: int | None = None  # about how much is in the folder; None if nobody has looked

    def get(self, key: str) -> Path | None:
        """The copy that was put under a key; None if there is none, or if it is damaged.

        It is verified when this object first returns it.
        """
        try:
            paths = list((self._folder / _checked(key)).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return None
        for path in paths:
            with contextlib.suppress(OSError):  # another process has removed it
                if self._is_sound(path):
                    self._note_use(path)
                    return path
                path.unlink()
        return None

    def put(self, key: str, write: Write) -> Path:
        """Keep a copy, in place of an earlier one; what `write` raises is raised.

        Raises:
            VisdivError: the folder cannot be written to.
        """
        return self.keep(key, self.temporary(write))

    def temporary(self, write: Write) -> Path:
        """A file in the folder that is no copy yet; raises as `put`."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=self._folder)
        except OSError as error:
            raise VisdivError(
                f"cannot keep copies of the bucket in {self._folder} ({error.strerror}); set "
                "cache.folder"
            ) from error
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return Path(name)

    def keep(self, key: str, temporary: Path) -> Path:
        """Make a temporary file the copy under a key."""
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, _hash).hexdigest()
            status = os.fstat(file.fileno())
        folder = self._folder / _checked(key)
        for attempt in range(TRIES):
            try:
                folder.mkdir(exist_ok=True)
                path = temporary.replace(folder / digest)
                break
            except (FileExistsError, FileNotFoundError):  # somebody has removed the empty folder
                if attempt == TRIES - 1:
                    raise
        self._sound.add((str(path), status.st_ino, status.st_size))
        with contextlib.suppress(FileNotFoundError):  # it had to make room already
            os.utime(path, (self._clock(), status.st_mtime))  # fetching may have taken long
            for other in folder.iterdir():
                if other != path:
                    other.unlink(missing_ok=True)
        self._trim(status.st_size, path)
        return path

    def _is_sound(self, path: Path) -> bool:
        status = path.stat()
        seen = (str(path), status.st_ino, status.st_size)
        if seen not in self._sound:
            with path.open("rb") as file:
                if hashlib.file_digest(file, _hash).hexdigest() != path.name:
                    return False
            self._sound.add(seen)
        return True

    def _note_use(self, path: Path) -> None:
        status = path.stat()
        now = self._clock()
        if now - status.st_atime > IN_USE_SECONDS / 4:  # not at each of a thousand reads
            os.utime(path, (now, status.st_mtime))

    def _trim(self, added: int, new: Path) -> None:
        """Remove copies that have not been used for longest, if there is too much."""
        with self._lock:
            if self._size is not None:
                self._size += added
                if self._size <= self._max_bytes:
                    return
            copies = self._copies()
            self._size = sum(copy.size for copy in copies)
            if self._size <= self._max_bytes:
                return
            now = self._clock()
            for copy in sorted(copies):
                if self._size <= ROOM * self._max_bytes or now - copy.used < IN_USE_SECONDS:
                    break
                if copy.path == new:
                    continue
                with contextlib.suppress(OSError):  # another process was faster
                    copy.path.unlink()
                    self._size -= copy.size
                    copy.path.parent.rmdir()

    def _copies(self) -> list[_Copy]:
        """All copies. Whatever else is in the folder is not ours, and stays."""
        copies = []
        for path in self._folder.glob("*/*"):
            if _is_key(path.name) and _is_key(path.parent.name):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    copies.append(_Copy(status.st_atime, status.st_size, path))
        for path in self._folder.glob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if self._clock() - path.stat().st_mtime > LEFTOVER_SECONDS:
                    path.unlink()
        return copies


def key_of(*parts: str) -> str:
    """A key that stands for some texts, in their order."""
    return _hash("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _hash(data: bytes = b"") -> "hashlib.blake2b":
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES)


def _checked(key: str) -> str:
    if not _is_key(key):
        raise ValueError(f"not a key: {key!r}")
    return key


def _is_key(name: str) -> bool:
    return KEY.fullmatch(name) is not None
