"""Images in tar archives, including WebDataset shards.

Here: members by name, and metadata from the members next to an image. Nothing is extracted to
disk. Not here: finding the archives (`containers.py`).
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from visdiv_assets.sources.containers import ArchiveSource
from visdiv_assets.sources.places import FileInfo
from visdiv_assets.sources.source import Item, read_limited
from visdiv_assets.sources.tables import as_metadata

# Members of a WebDataset sample that describe its images; larger ones are ignored.
SIDECARS = frozenset({"cls", "json", "txt"})
MAX_SIDECAR_BYTES = 65_536


class TarSource(ArchiveSource):
    """Image members of tar archives, plain or compressed; an image's place is its member's name.

    In WebDataset, members whose names are equal up to the first dot form one sample. Each image
    member is one image; `.cls`, `.txt` and the scalar values of `.json` are its metadata.
    """

    def _items(self, file: FileInfo) -> Iterator[Item]:
        sample, images = "", list[Item]()
        metadata: dict[str, str] = {}
        with self._members(file) as members:
            for archive, member in members:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if f"{folder}/{stem}" != sample:
                    yield from (image._replace(metadata=metadata or None) for image in images)
                    sample, images, metadata = f"{folder}/{stem}", [], {}
                if extension in SIDECARS and member.size <= MAX_SIDECAR_BYTES:
                    content = archive.extractfile(member)
                    metadata |= _said(extension, content.read() if content else b"")
                elif self._takes(file, member.name):
                    images.append(Item(member.name, member.size, file.version))
            yield from (image._replace(metadata=metadata or None) for image in images)

    def _read(self, file: FileInfo, places: set[str]) -> Iterator[tuple[str, bytes | OSError]]:
        with self._members(file) as members:
            for archive, member in members:
                if member.name not in places:
                    continue
                places.remove(member.name)
                content = archive.extractfile(member)
                try:
                    yield member.name, read_limited(content) if content else b""
                except OSError as error:
                    yield member.name, error
                if not places:
                    return

    @contextmanager
    def _members(
        self, file: FileInfo
    ) -> Iterator[Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]]:
        # Compressed archives are streamed, so that no byte is decompressed twice.
        mode = "r:" if file.name.endswith(".tar") else "r|*"
        with (
            self._place.open(file.name) as content,
            tarfile.open(fileobj=content, mode=mode) as archive,  # type: ignore[call-overload]
        ):
            yield _members_of(archive)


def _members_of(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Regular files only, since links may lead elsewhere; tarfile's list of headers is emptied."""
    while (member := archive.next()) is not None:
        if member.isreg():
            yield archive, member
        archive.members = []  # type: ignore[attr-defined]
    # An archive ends with a block of zeros, but tarfile also accepts the end of the file.
    if archive.fileobj.tell() - archive.offset < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data: the archive is truncated")


def _said(extension: str, content: bytes) -> Mapping[str, str]:
    text = content.decode("utf-8", "replace").strip()
    if extension != "json":
        return as_metadata({extension: text})
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return as_metadata(values) if isinstance(values, dict) else {}
