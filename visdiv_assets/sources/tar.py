"""Images in tar archives, including WebDataset shards.

Here: members by name, and metadata from the members next to an image. Nothing is extracted to
disk. Not here: finding the archives (`containers.py`).
"""

import bz2
import gzip
import json
import lzma
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Self

from visdiv_assets.sources.containers import ArchiveSource
from visdiv_assets.sources.places import FileInfo
from visdiv_assets.sources.reaching import check_time
from visdiv_assets.sources.source import Item, is_image_name, read_limited
from visdiv_assets.sources.tables import as_metadata

# Members of a WebDataset sample that describe its images; larger ones are ignored.
SIDECARS = frozenset({"cls", "json", "txt"})
MAX_SIDECAR_BYTES = 65_536

# How packed files begin. Each of these readers reads all streams of a file, one after the other.
UNPACKERS: tuple[tuple[bytes, Callable[[IO[bytes]], Any]], ...] = (
    (rb"\x1f\x8b\x08", gzip.open),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", bz2.open),
    (rb"\xfd7zXZ\0|]\0\0\x80", lzma.open),
)

# Zeros end an archive, but another one may follow.
MAX_ZEROS = 64 * 2**20

# Names that occur several times, by archive, as its last listing in this process found them.
_repeated: dict[tuple[str, FileInfo], Counter[str]] = {}
MAX_REMEMBERED = 100_000


class TarSource(ArchiveSource):
    """Image members of tar archives, plain or compressed; an image's place is its member's name.

    In WebDataset, members whose names are equal up to the first dot form one sample. Each image
    member is one image; `.cls`, `.txt` and the scalar values of `.json` are its metadata.

    Archives may be concatenated or appended to. Of members with one name, the last counts, as when
    the archive is extracted.
    """

    last_counts = True

    def _items(self, file: FileInfo) -> Iterator[Item]:
        sample, images = "", list[Item]()
        metadata: dict[str, str] = {}
        names: set[str] = set()
        repeated = Counter[str]()
        with self._members(file, self._tally) as members:
            for archive, member in members:
                check_time()
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if f"{folder}/{stem}" != sample:
                    yield from (image._replace(metadata=metadata or None) for image in images)
                    sample, images, metadata = f"{folder}/{stem}", [], {}
                if extension in SIDECARS and member.size <= MAX_SIDECAR_BYTES:
                    content = archive.extractfile(member)
                    metadata |= _said(extension, content.read() if content else b"")
                elif self._takes(file, member.name):
                    if member.name in names:
                        repeated[member.name] += 1
                    names.add(member.name)
                    images.append(Item(member.name, member.size, file.version))
            yield from (image._replace(metadata=metadata or None) for image in images)
        if repeated:
            self._tally["members replaced by later ones of the same name"] += repeated.total()
        self._remember(file, repeated)

    def _read(self, file: FileInfo, places: set[str]) -> Iterator[tuple[str, bytes | OSError]]:
        earlier = self._repetitions(file)
        with self._members(file, Counter()) as members:
            for archive, member in members:
                if member.name not in places:
                    continue
                if earlier[member.name]:
                    earlier[member.name] -= 1
                    continue
                places.remove(member.name)
                content = archive.extractfile(member)
                try:
                    yield member.name, read_limited(content) if content else b""
                except OSError as error:
                    yield member.name, error
                if not places:
                    return

    def _repetitions(self, file: FileInfo) -> Counter[str]:
        """How many members of the same name precede the last one, for names that occur again."""
        if (self._place.uri, file) not in _repeated:
            counts = Counter[str]()
            with self._members(file, Counter()) as members:
                counts.update(member.name for _, member in members)
            self._remember(file, Counter({each: n - 1 for each, n in counts.items() if n > 1}))
        return _repeated[self._place.uri, file].copy()

    def _remember(self, file: FileInfo, repeated: Counter[str]) -> None:
        if len(_repeated) >= MAX_REMEMBERED:
            _repeated.clear()
        _repeated[self._place.uri, file] = repeated

    @contextmanager
    def _members(
        self, file: FileInfo, tally: Counter[str]
    ) -> Iterator[Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]]:
        with self._place.open(file.name) as packed:
            start = packed.read(10)
            packed.seek(0)
            unpack = next((each for magic, each in UNPACKERS if re.match(magic, start)), None)
            # Compressed archives are streamed, so that no byte is decompressed twice.
            with tarfile.open(
                fileobj=unpack(packed) if unpack else packed,
                mode="r|" if unpack else "r:",
                tarinfo=_header_class(),
                ignore_zeros=True,
            ) as archive:
                yield _members_of(archive, tally)


def _members_of(
    archive: tarfile.TarFile, tally: Counter[str]
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Regular files only, since links may lead elsewhere; tarfile's list of headers is emptied."""
    while (member := archive.next()) is not None:
        if member.isreg():
            yield archive, member
        elif (member.issym() or member.islnk()) and is_image_name(member.name):
            tally["links to images, which are not followed"] += 1
        archive.members = []  # type: ignore[attr-defined]


def _header_class() -> type[tarfile.TarInfo]:
    """Headers of one archive, or of several that follow each other.

    tarfile takes a damaged header for the end of an archive, and so would lose the rest silently.
    """

    class Header(tarfile.TarInfo):
        ended = False  # by a block of zeros
        zeros = 0

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            """As tarfile's, but a damaged header is an error, and where the zeros are is noted."""
            try:
                header = super().frombuf(buf, encoding, errors)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                cls.ended = True
                cls.zeros += len(buf)
                if cls.zeros > MAX_ZEROS:
                    raise tarfile.ReadError("it holds nothing but zeros") from None
                raise
            except tarfile.HeaderError as error:  # none, a part of one, or a damaged one
                if cls.ended and len(buf) < tarfile.BLOCKSIZE:
                    raise
                if len(buf) < tarfile.BLOCKSIZE:
                    why = "unexpected end of data: the archive is truncated"
                else:
                    why = f"what follows a member or an archive is no header ({error})"
                raise tarfile.ReadError(why) from None
            cls.ended, cls.zeros = False, 0
            return header

    return Header


def _said(extension: str, content: bytes) -> Mapping[str, str]:
    text = content.decode("utf-8", "replace").strip()
    if extension != "json":
        return as_metadata({extension: text})
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return as_metadata(values) if isinstance(values, dict) else {}
