"""Files by name in a folder, in a bucket or on a web server: the basis of most sources.

Here: globs and braces, retries, errors without secrets. Not here: file formats, requests to web
servers (`web.py`) and to buckets (`buckets.py`).
"""

import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import bracex
import tenacity
from wcmatch import glob

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import (
    BUCKET_SCHEMES,
    WEB_SCHEMES,
    remember,
    secrets_in,
    without_secrets,
)
from visdiv_assets.sources.buckets import (
    ATTEMPTS,
    RETRY_SECONDS,
    BucketClient,
    is_passing_status,
)
from visdiv_assets.sources.reaching import (
    Contact,
    NoAnswerError,
    brief,
    check_time,
    is_away,
    unlisted,
)
from visdiv_assets.sources.source import MAX_IMAGE_BYTES, Parts
from visdiv_assets.sources.uris import has_magic, scheme_of
from visdiv_assets.sources.web import StatusError, Web

T = TypeVar("T")


GLOB_FLAGS = glob.GLOBSTAR | glob.DOTGLOB
MAX_FILES = 1_000_000
MAX_VERSION_CHARACTERS = 100

BUFFER_BYTES = 4 * 2**20
SPARE_BYTES = 2**30  # that a temporary copy leaves free


class FileInfo(NamedTuple):
    """A file: its name relative to the place, its size in bytes, and a version (etag or time)."""

    name: str
    size: int
    version: str


class FileState(NamedTuple):
    """What a name in a local folder leads to.

    Attributes:
        file: device and inode, equal for all names of a file; its real path where there are none.
        size: in bytes.
        version: as of `FileInfo`.
    """

    file: tuple[int, int] | str
    size: int
    version: str


class Place(Protocol):
    """A folder, wherever it is. Names are relative to it and use slashes."""

    @property
    def uri(self) -> str:
        """Its address as shown to users, without secrets."""

    def info(self, name: str) -> FileInfo:
        """Size and version of a file; raises OSError if there is no such file."""

    def read(self, name: str) -> bytes:
        """The content of a file that holds one image; raises OSError if that fails."""

    def open(self, name: str) -> IO[bytes]:
        """A seekable file to read from; a remote file is fetched in parts."""

    def names(self, pattern: str) -> Iterator[str]:
        """The names of files that match a glob; raises VisdivError if listing is impossible."""


def open_place(uri: str, options: Mapping[str, str]) -> Place:
    """The place that a URI without globs names.

    Raises:
        VisdivError: the scheme is not supported, or the URI or the options are invalid.
    """
    scheme = scheme_of(uri)
    remember(secrets_in(uri, options))
    try:
        _ = urlsplit(
            uri if scheme else ""
        ).port  # fails early: later errors would show the whole URI
    except ValueError:
        raise VisdivError(f"{without_secrets(uri)} is not a valid address") from None
    if scheme in BUCKET_SCHEMES:
        return BucketPlace(uri, options)
    if scheme in WEB_SCHEMES:
        return WebPlace(uri)
    if scheme not in ("", "file"):
        known = ", ".join(sorted(f"{each}://" for each in BUCKET_SCHEMES | WEB_SCHEMES))
        raise VisdivError(f"cannot read images from {scheme}://; use a path or one of {known}")
    return LocalPlace(uri.removeprefix("file://"))


def find_files(place: Place, pattern: str) -> list[FileInfo]:
    """The files that match a pattern of globs and braces, sorted by name.

    Raises:
        VisdivError: there are none, or a file that braces name is missing.
        Unreachable: the place does not answer.
    """
    try:
        # A file with exactly this name takes precedence over the pattern.
        if has_magic(pattern):
            return [place.info(pattern)]
    except OSError as error:
        if is_away(error):
            raise unlisted(f"cannot list {place.uri}: {error.strerror or error}", error) from None
    names: set[str] = set()
    try:
        # Plain names are not expanded: a backslash in them is not an escape.
        plain = not has_magic(pattern)
        for each in [pattern] if plain else bracex.iexpand(pattern, limit=MAX_FILES):
            names.update(place.names(each) if has_magic(each) else [each])
        if not names:
            raise VisdivError(f"no files in {place.uri} match {pattern}")
        return [_looked_at(place, name) for name in sorted(names)]
    except bracex.ExpansionLimitException:
        raise VisdivError(f"{pattern} expands to more than {MAX_FILES:,} files") from None
    except OSError as error:
        raise unlisted(f"cannot list {place.uri}: {error.strerror or error}", error) from None


def _looked_at(place: Place, name: str) -> FileInfo:
    check_time()
    uri = f"{place.uri.rstrip('/')}/{name}"
    try:
        return place.info(name)
    except FileNotFoundError:
        raise VisdivError(f"no such file: {uri}") from None
    except OSError as error:
        raise unlisted(f"cannot read {uri}: {error.strerror or error}", error) from None


def version_told(told: str) -> str:
    """A version as a server tells it: an etag without its quotes; a hash of it if it is odd.

    A server may send anything. What it sends becomes text in tables, never part of a path.

    Example:
        >>> version_told('"33a64df5"')
        '33a64df5'
    """
    version = told.strip('"')
    if version.isascii() and version.isprintable() and len(version) <= MAX_VERSION_CHARACTERS:
        return version
    return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class LocalPlace:
    """A local folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self._whole = os.path.commonpath((self.root,))  # a path may begin with two slashes
        self._contact = Contact()

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    def path(self, name: str) -> Path:
        """The path of a file; raises OSError for a name that leads outside the folder."""
        return Path(self._path(name))

    def _path(self, name: str) -> str:
        # As text: paths as objects take longer than reading a small file.
        path = os.path.normpath(os.path.join(self.root, name))
        if "\0" in name or os.path.commonpath((path, self.root)) != self._whole:
            raise OSError(f"its path leads outside {self.root}")
        return path

    def info(self, name: str) -> FileInfo:
        """Size and modification time."""
        status = self.path(name).stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a file")  # reading a pipe or a device might block forever
        return FileInfo(name, status.st_size, f"{status.st_mtime_ns:x}")

    def state(self, name: str) -> FileState | None:
        """What a name leads to now; None if there is no such file."""
        try:
            path = self.path(name)
            status = path.stat()
        except OSError:
            return None
        return FileState(
            (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path),
            status.st_size,
            f"{status.st_mtime_ns:x}",
        )

    def is_real(self, name: str) -> bool:
        """Whether a name leads to its file without a symbolic link below the root."""
        real = os.path.realpath(self.root / name)
        return real == os.path.normpath(self._real_root / name)

    @cached_property
    def _real_root(self) -> Path:
        return self.root.resolve()

    def read(self, name: str) -> bytes:
        """The whole content of a file."""
        try:
            content = _content(self._path(name))
        except OSError as error:
            if is_away(error):
                self._contact.missed(self.uri, error)
            raise
        self._contact.made()
        return content

    def open(self, name: str) -> IO[bytes]:
        """An ordinary Python file."""
        self.info(name)
        return self.path(name).open("rb")

    def names(self, pattern: str) -> Iterator[str]:
        """By globbing; raises OSError if the folder is there and cannot be looked at."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.root.stat()
        for name in glob.iglob(pattern, flags=GLOB_FLAGS, root_dir=str(self.root)):
            check_time()
            if _is_file(self.root / name):
                yield str(name)


def _content(path: str) -> bytes:
    """The content of a file that holds one image, with as few calls of the system as there can be.

    At each of them, Python passes its lock on to another thread.

    Raises:
        OSError: there is no such file, or it exceeds MAX_IMAGE_BYTES.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might block forever
        raise OSError("not a file")
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        wanted = min(status.st_size, MAX_IMAGE_BYTES) + 1
        content = os.read(number, wanted)
        # It is over if there is less than was asked for; or else it has changed meanwhile.
        if len(content) not in (0, status.st_size):
            with open(number, "rb", closefd=False) as file:
                content += file.read(MAX_IMAGE_BYTES + 1 - len(content))
        if len(content) > MAX_IMAGE_BYTES:
            raise OSError(f"larger than {MAX_IMAGE_BYTES:,} bytes")
        return content
    finally:
        os.close(number)


def _is_file(path: Path) -> bool:
    """Whether a path leads to a regular file; raises OSError if what it is on is out of reach.

    Python's own takes a mount whose server is gone for one without files.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        if is_away(error):
            raise
        return False


def local_place(source: object) -> LocalPlace | None:
    """The folder that the images of a source are files of; None if they are elsewhere."""
    place = getattr(source, "place", None)
    return place if isinstance(place, LocalPlace) else None


class BucketPlace:
    """A prefix in a bucket. Credentials come from the environment or from options."""

    def __init__(self, uri: str, options: Mapping[str, str]) -> None:
        self._client = BucketClient(uri, options)
        self.uri = self._client.uri
        self._store, self._try = self._client.store, self._client.attempt

    def info(self, name: str) -> FileInfo:
        """Size and etag."""
        import obstore

        return _described(self._try(lambda: obstore.head(self._store, name)))

    def read(self, name: str) -> bytes:
        """By one request."""
        import obstore

        def get() -> bytes:
            found = obstore.get(self._store, name)
            if found.meta["size"] > MAX_IMAGE_BYTES:
                raise OSError(f"larger than {MAX_IMAGE_BYTES:,} bytes")
            return bytes(found.bytes())

        return self._try(get)

    def open(self, name: str) -> IO[bytes]:
        """By ranges."""
        import obstore

        file = self._try(lambda: obstore.open_reader(self._store, name, buffer_size=BUFFER_BYTES))
        return io.BufferedReader(_Far(file, self._try), BUFFER_BYTES)

    def names(self, pattern: str) -> Iterator[str]:
        """List the objects below the fixed part of the pattern."""
        wanted = compiled([pattern])
        fixed = itertools.takewhile(lambda part: not has_magic(part), pattern.split("/"))
        for found in self.files("/".join(fixed)):
            if wanted is not None and wanted.match(found.name):
                yield found.name

    def files(self, below: str = "") -> Iterator[FileInfo]:
        """Every object below a name, yielded as pages arrive.

        Raises:
            OSError: the listing failed, after retries.
        """
        import obstore

        pages = iter(self._try(lambda: obstore.list(self._store, below or None)))
        while (page := self._try(lambda: next(pages, None))) is not None:
            yield from map(_described, page)


def _described(found: Any) -> FileInfo:
    version = found["e_tag"] or f"{found['last_modified'].timestamp():.6f}"
    return FileInfo(found["path"], found["size"], version_told(version))


class _Far(io.RawIOBase):
    """A remote file, wrapped as a Python file."""

    def __init__(self, file: Any, attempt: Callable[[Callable[[], Any]], Any]) -> None:
        self._file, self._attempt = file, attempt

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._attempt(lambda: self._file.seek(offset, whence)))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._attempt(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


class WebPlace:
    """A folder on a web server, which cannot be listed. The URI's query goes with every request."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self._secrets = secrets_in(uri, {})
        self.uri = without_secrets(uri).rstrip("/")
        self._base = uri.partition("?")[0].rstrip("/")
        self._query = f"?{parts.query}" if parts.query else ""
        # Secrets in the URI would appear in its errors; `_try` removes them.
        self._web, self._contact = Web(), Contact()

    def info(self, name: str) -> FileInfo:
        """By a HEAD request."""
        found = self._try(lambda: self._web.head(self._url(name)))
        return FileInfo(name, found.size or 0, version_told(found.version))

    def read(self, name: str) -> bytes:
        """By one request."""
        return self._try(lambda: self._web.get(self._url(name), MAX_IMAGE_BYTES))

    def open(self, name: str) -> IO[bytes]:
        """By ranges if the server supports them, else from a temporary copy of the whole file."""
        url = self._url(name)
        told = self._try(lambda: self._web.head(url))
        if told.ranges and told.size:

            def read(start: int, size: int) -> bytes:
                return self._try(lambda: self._web.part(url, start, size))

            return io.BufferedReader(Parts(read, told.size), BUFFER_BYTES)
        room = max(0, shutil.disk_usage(tempfile.gettempdir()).free - SPARE_BYTES)
        if (told.size or 0) > room:
            raise OSError(
                f"it has {told.size:,} bytes, more than {tempfile.gettempdir()} has room for; "
                "set TMPDIR to another folder"
            )
        whole = tempfile.TemporaryFile()  # noqa: SIM115  whoever asked for it closes it

        def copy() -> None:
            whole.seek(0)
            whole.truncate()
            self._web.copy(url, whole, told.size or room)

        try:
            self._try(copy)
            whole.seek(0)
        except BaseException:
            whole.close()
            raise
        return whole

    def names(self, pattern: str) -> Iterator[str]:
        """Always raises VisdivError."""
        raise VisdivError(
            f"cannot find {pattern} on {self.uri}, since files on a web server cannot be listed; "
            f"name the files, with {{000..099}} for many, or give a list"
        )

    def _url(self, name: str) -> str:
        if ".." in unquote(name).split("/"):
            raise OSError(f"its path leads outside {self.uri}")
        return f"{self._base}/{name}{self._query}"

    def _try(self, act: Callable[[], T]) -> T:
        """Call, and retry while the server is unreachable, slow or overloaded."""
        # A server that did not answer the last time is asked once.
        attempts = 1 if self._contact.failures else ATTEMPTS
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            wait=tenacity.wait_random_exponential(0.2, max=10),
            stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_after_delay(RETRY_SECONDS),
            reraise=True,
        )
        try:
            result = retrying(act)
        except OSError as error:
            text = brief(str(error), self._secrets)
            kind: type[OSError] = NoAnswerError if _may_pass(error) else OSError
            told = FileNotFoundError(text) if isinstance(error, FileNotFoundError) else kind(text)
            self._contact.note(self.uri, told)
            raise told from None
        self._contact.made()
        return result


def _may_pass(error: BaseException) -> bool:
    return is_away(error) or (isinstance(error, StatusError) and is_passing_status(error.status))


def compiled(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """A regular expression for paths that match one of the globs; None without globs.

    Raises:
        VisdivError: a pattern is not valid.
    """
    if not patterns:
        return None
    try:
        flags = GLOB_FLAGS | glob.BRACE
        translated, _ = glob.translate(list(patterns), flags=flags, limit=MAX_FILES)
        return re.compile("|".join(translated))
    except Exception as error:  # noqa: BLE001  wcmatch's own are private
        shown = ", ".join(patterns)[:200]
        raise VisdivError(f"invalid pattern in include or exclude ({shown}): {error}") from None
