"""Where the bytes of a store are kept: a folder on a disk.

Here: the interface, and the folder. Not here: buckets (`bucket.py`), what the files are and how
they are called (`store.py`).
"""

import contextlib
import itertools
import os
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import filelock

# What temporary files are called; no reader and no listing takes them for anything else.
TEMPORARY = ".tmp-"
TRIES = 5

Write = Callable[[IO[bytes]], object]
# Reads the bytes from a start up to an end.
Read = Callable[[int, int], bytes]


class StoredFile(NamedTuple):
    """A file of the store.

    Attributes:
        name: relative to the store, with slashes.
        size: bytes.
        changed: Unix time of the last change, by the clock of whoever keeps it.
        version: another one whenever the file is written anew.
    """

    name: str
    size: int
    changed: float
    version: str


class Objects(Protocol):
    """Files by name. Threads and processes may share it, and see whole files only.

    A file that is not there is a FileNotFoundError everywhere. Whatever else goes wrong in a bucket
    is a VisdivError, which is Unreachable if it may pass; on a disk, an OSError.
    """

    @property
    def uri(self) -> str:
        """Where it is, as shown to users."""

    def shown(self, name: str) -> str:
        """Where a file is, as shown to users."""

    def files(self, below: str) -> Iterator[StoredFile]:
        """All files below a folder, in no particular order; none if there is no such folder."""

    def about(self, name: str) -> StoredFile:
        """What there is to know about one file."""

    def local(self, name: str, *, fresh: bool = False) -> Path:
        """A file on this machine with the content of that name, to be read and not changed.

        Args:
            name: the file.
            fresh: whether to pass over what is cached.
        """

    def head(self, name: str, size: int) -> tuple[bytes, int]:
        """The first bytes of a file, and how many it has."""

    def ranges(self, name: str) -> tuple[int, Read]:
        """The size of a file, and a function that reads parts of it.

        On a disk it goes on reading that file when the name is gone.
        """

    def write(self, name: str, write: Write) -> None:
        """Put a file in place of an earlier one, at once, when all of it is written."""

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Change a small file, unless somebody else changes it meanwhile: then begin anew.

        Args:
            name: the file.
            change: from what it holds (None if it is not there) to what it shall hold, or None if
                it shall stay as it is. May be called several times.
        """

    def rename(self, name: str, new: str) -> None:
        """Give a file another name. Whoever is killed meanwhile may leave both."""

    def delete(self, name: str) -> None:
        """Delete a file, and folders that are empty then."""


class Folder:
    """A folder on a disk, created at the first write.

    What is written is on the disk before it gets its name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        """Its path."""
        return str(self.root)

    def shown(self, name: str) -> str:
        """The path of a file."""
        return str(self.root / name)

    def files(self, below: str) -> Iterator[StoredFile]:
        """By walking the tree, without following links."""
        start = str(self.root)
        for folder, _, names in os.walk(self.root / below):
            at = os.path.relpath(folder, start)
            for name in names:
                with contextlib.suppress(OSError):  # it went meanwhile
                    yield _stored(f"{at}/{name}", os.lstat(os.path.join(folder, name)))

    def about(self, name: str) -> StoredFile:
        """By asking the file system."""
        return _stored(name, (self.root / name).stat(follow_symlinks=False))

    def local(self, name: str, *, fresh: bool = False) -> Path:
        """The file itself."""
        path = self.root / name
        path.stat()
        return path

    def head(self, name: str, size: int) -> tuple[bytes, int]:
        """By reading them."""
        with (self.root / name).open("rb") as file:
            return file.read(size), os.fstat(file.fileno()).st_size

    def ranges(self, name: str) -> tuple[int, Read]:
        """An open file; it is closed with the last reference to the function."""
        descriptor = os.open(self.root / name, os.O_RDONLY)
        opened = _Descriptor(descriptor)
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise IsADirectoryError(f"{self.root / name} is no file")
        return about.st_size, opened.read

    def write(self, name: str, write: Write) -> None:
        """Under a hidden temporary name in the same folder, flushed, then renamed."""
        try:
            write_atomically(self.root / name, write)
        except IsADirectoryError:  # somebody has put a folder there
            (self.root / name).rmdir()
            write_atomically(self.root / name, write)

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Under a lock of the whole store, which is held for a moment."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._turn():
            try:
                before = (self.root / name).read_bytes()
            except (FileNotFoundError, IsADirectoryError):
                before = None
            after = change(before)
            if after is not None:
                self.write(name, lambda file: file.write(after))

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        lock = filelock.FileLock(self.root / ".update.lock", poll_interval=0.01)
        # Somebody has put a folder there, or the disk is full or read-only: then writing says so.
        with contextlib.suppress(OSError):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def rename(self, name: str, new: str) -> None:
        """At once; the time of its last change becomes now."""
        os.utime(self.root / name)  # first: it is not deleted before it has had its name for long
        (self.root / name).rename(self.root / new)

    def delete(self, name: str) -> None:
        """At once."""
        path = self.root / name
        (path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink)()
        while (path := path.parent) != self.root:
            try:
                path.rmdir()
            except OSError:  # not empty, or somebody was faster
                return


class _Descriptor:
    """An open file, closed with the last reference to it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self._descriptor, end - start, start)


def _stored(name: str, status: os.stat_result) -> StoredFile:
    version = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
    return StoredFile(name, status.st_size, status.st_mtime, version)


def write_atomically(path: Path, write: Write) -> None:
    """Write to a hidden temporary file in the same folder, flush it to disk, then rename it."""
    temporary, handle = _temporary_beside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary_beside(path: Path) -> tuple[Path, int]:
    """A new file in the folder of a path, and its descriptor."""
    for attempt in itertools.count():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        except FileNotFoundError:  # somebody has removed the folder, which was empty
            if attempt == TRIES:
                raise
            continue
        return Path(name), handle
    raise AssertionError
