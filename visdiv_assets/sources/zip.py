"""Images in zip archives.

Here: members by name. Nothing is extracted to disk. Not here: finding archives (`containers.py`).
"""

import zipfile
from collections.abc import Iterator

from visdiv_assets.sources.containers import ArchiveSource
from visdiv_assets.sources.places import FileInfo
from visdiv_assets.sources.source import Item, read_limited


class ZipSource(ArchiveSource):
    """Image members of zip archives; an image's place is its member's name.

    Its version is the checksum that the archive stores, so a new archive with the same images has
    no new images.
    """

    def _items(self, file: FileInfo) -> Iterator[Item]:
        with self._place.open(file.name) as content, zipfile.ZipFile(content) as archive:
            for member in archive.infolist():
                if not member.is_dir() and self._takes(file, member.filename):
                    yield Item(member.filename, member.file_size, f"{member.CRC:08x}")

    def _read(self, file: FileInfo, places: set[str]) -> Iterator[tuple[str, bytes | OSError]]:
        with self._place.open(file.name) as content, zipfile.ZipFile(content) as archive:
            members = [archive.NameToInfo[place] for place in places if place in archive.NameToInfo]
            for member in sorted(members, key=lambda member: member.header_offset):
                try:
                    with archive.open(member) as image:
                        yield member.filename, read_limited(image)
                except OSError as error:
                    yield member.filename, error
                # Damaged, encrypted, or compressed with a method that Python does not support.
                except Exception as error:  # noqa: BLE001  each way of packing has its own
                    yield member.filename, OSError(f"{type(error).__name__}: {error}")
