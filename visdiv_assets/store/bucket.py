"""A store in a bucket: s3://, gs:// or az://, with copies on this machine of what was read.

Not here: connecting, retries, errors without secrets (`sources/buckets.py`), how copies are kept
(`cache.py`).
"""

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import tenacity

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.buckets import BucketClient
from visdiv_assets.sources.reaching import unlisted
from visdiv_assets.store.cache import Cache, key_of
from visdiv_assets.store.objects import Folder, Read, StoredFile, Write

T = TypeVar("T")

# What is fetched at a time of a file that is read in parts, and of one that is read whole.
PIECE_BYTES = 4 * 2**20
CHUNK_BYTES = 8 * 2**20
# Larger files are sent in parts, several at once.
PART_BYTES = 16 * 2**20
# A segment has 256 MiB, and a line may be slow; a server that is silent is given up long before.
LONGEST_SECONDS = 3600.0
# Attempts to change a file that others change as well.
CHANGES = 100


class Bucket:
    """A prefix in a bucket. A file is seen whole or not at all, as object stores have it.

    A copy is found by the file's name and its version, so it never stands for another content.
    """

    def __init__(
        self,
        uri: str,
        options: Mapping[str, str],
        cache: Cache,
        patience: float | None = None,
    ) -> None:
        """Connect; nothing is asked yet.

        Args:
            uri: s3://, gs:// or az://, bucket and prefix.
            options: as for sources.
            cache: where copies are kept.
            patience: seconds for a request with all its attempts; None is for work that may wait.

        Raises:
            VisdivError: the address or the options are not valid.
        """
        self._client = BucketClient(uri, options, patience, longest=LONGEST_SECONDS)
        self._store = self._client.store
        self._cache = cache

    @property
    def uri(self) -> str:
        """Its address, without secrets."""
        return self._client.uri

    def shown(self, name: str) -> str:
        """The address of a file."""
        return f"{self.uri}/{name}"

    def files(self, below: str) -> Iterator[StoredFile]:
        """By listing, a page of a thousand at a time."""
        import obstore

        pages = iter(self._ask("list", below, lambda: obstore.list(self._store, below)))
        while (page := self._ask("list", below, lambda: next(pages, None))) is not None:
            yield from map(_stored, page)

    def about(self, name: str) -> StoredFile:
        """By one request."""
        import obstore

        return _stored(self._ask("read", name, lambda: obstore.head(self._store, name)))

    def local(self, name: str, *, fresh: bool = False) -> Path:
        """A copy, fetched if there is none of that version."""
        import obstore

        found = None if fresh else self._cache.get(self._key(self.about(name)))
        if found is not None and found.exists():
            return found
        about: list[StoredFile] = []

        def fetch() -> Path:
            got = obstore.get(self._store, name)
            about[:] = [_stored(got.meta)]

            def write(file: IO[bytes]) -> None:
                for chunk in got.stream(min_chunk_size=CHUNK_BYTES):
                    file.write(chunk)

            return self._cache.temporary(write)

        temporary = self._ask("read", name, fetch)
        return self._cache.keep(self._key(about[0]), temporary)

    def head(self, name: str, size: int) -> tuple[bytes, int]:
        """By one request."""
        import obstore
        from obstore.exceptions import GenericError

        def get() -> tuple[bytes, int]:
            try:
                got = obstore.get(self._store, name, options={"range": (0, size)})
            except GenericError as error:
                if "416 Range Not Satisfiable" in str(error):  # it is empty
                    return b"", 0
                raise
            return bytes(got.bytes()), got.meta["size"]

        return self._ask("read", name, get)

    def ranges(self, name: str) -> tuple[int, Read]:
        """Pieces of 4 MiB are fetched when they are first needed, and copies of them kept."""
        about = self.about(name)
        whole = self._cache.get(self._key(about))
        if whole is not None:  # it was written here
            return Folder(whole.parent).ranges(whole.name)

        def read(start: int, end: int) -> bytes:
            numbers = range(start // PIECE_BYTES, -(-end // PIECE_BYTES))
            data = b"".join(self._pieces(about, numbers))
            return data[start - numbers.start * PIECE_BYTES :][: end - start]

        return about.size, read

    def _pieces(self, about: StoredFile, numbers: range) -> list[bytes]:
        """Consecutive pieces of a file, each from its copy or from the bucket."""
        import obstore

        keys = {number: self._key(about, str(number)) for number in numbers}
        pieces: dict[int, bytes] = {}
        for number, key in keys.items():
            copy = self._cache.get(key)
            if copy is not None:
                pieces[number] = copy.read_bytes()
        missing = [number for number in numbers if number not in pieces]
        if missing:
            starts = [number * PIECE_BYTES for number in missing]
            ends = [min(start + PIECE_BYTES, about.size) for start in starts]
            fetched = self._ask(
                "read",
                about.name,
                lambda: obstore.get_ranges(self._store, about.name, starts=starts, ends=ends),
            )
            for number, piece in zip(missing, fetched, strict=True):
                pieces[number] = bytes(piece)
                self._cache.put(keys[number], partial(_write, pieces[number]))
        return [pieces[number] for number in numbers]

    def write(self, name: str, write: Write) -> None:
        """Through a file on this machine, which becomes the copy."""
        import obstore

        temporary = self._cache.temporary(write)
        try:
            result = self._ask(
                "write",
                name,
                lambda: obstore.put(self._store, name, temporary, chunk_size=PART_BYTES),
            )
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._cache.keep(self._key_of(name, result["e_tag"]), temporary)

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """By conditional requests."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def read() -> tuple[bytes, dict[str, Any]]:
            got = obstore.get(self._store, name)
            version = {key: got.meta[key] for key in ("e_tag", "version")}
            return bytes(got.bytes()), {key: told for key, told in version.items() if told}

        def put(content: bytes, mode: Any) -> bool:
            try:
                obstore.put(self._store, name, content, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        def tried() -> bool:
            before: bytes | None = None
            mode: Any = "create"
            with contextlib.suppress(FileNotFoundError):
                before, mode = self._ask("read", name, read)
            after = change(before)
            return after is None or self._ask("write", name, lambda: put(after, mode))

        trying = tenacity.Retrying(
            retry=tenacity.retry_if_result(operator.not_),
            wait=tenacity.wait_random(0, 0.05),
            stop=tenacity.stop_after_attempt(CHANGES),
            retry_error_callback=lambda _: False,
        )
        if not trying(tried):
            raise VisdivError(f"cannot write {self.shown(name)}: others keep changing it")

    def rename(self, name: str, new: str) -> None:
        """By copying and deleting."""
        import obstore

        self._ask("rename", name, lambda: obstore.rename(self._store, name, new))

    def delete(self, name: str) -> None:
        """By one request; there are no folders."""
        import obstore

        self._ask("delete", name, lambda: obstore.delete(self._store, name))

    def _key(self, about: StoredFile, piece: str = "") -> str:
        return self._key_of(about.name, about.version, piece)

    def _key_of(self, name: str, version: str | None, piece: str = "") -> str:
        return key_of(self.uri, name, version or "", piece)

    def _ask(self, what: str, name: str, act: Callable[[], T]) -> T:
        try:
            return self._client.attempt(act)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and what != "write":
                raise
            raise unlisted(f"cannot {what} {self.shown(name)}: {error}", error) from None


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _stored(meta: Any) -> StoredFile:
    changed = meta["last_modified"].timestamp()
    version = meta["e_tag"] or f"{changed:.6f}-{meta['size']}"
    return StoredFile(meta["path"], meta["size"], changed, version)
