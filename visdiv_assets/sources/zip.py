"""Images in zip archives.

Here: members by name. Nothing is extracted to disk. Not here: finding archives (`containers.py`).
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import IO

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.containers import ArchiveSource
from visdiv_assets.sources.places import FileInfo
from visdiv_assets.sources.source import Item, Parts, is_image_name, read_limited

LOCAL_HEADER = b"PK\x03\x04"
MAX_ARCHIVES = 1000  # in one file, one after the other


class ZipSource(ArchiveSource):
    """Image members of zip archives; an image's place is its member's name.

    Its version is the checksum that the archive stores, so a new archive with the same images has
    no new images. A file may hold several archives, one after the other, and other data before
    them. Of members with one name, the last counts.
    """

    def _items(self, file: FileInfo) -> Iterator[Item]:
        with self._place.open(file.name) as content, _archives_in(content) as archives:
            members = _members_of(archives)
            for _, member in members.values():
                if not member.is_dir() and self._takes(file, member.filename):
                    yield Item(member.filename, member.file_size, f"{member.CRC:08x}")
            listed = [each.filename for archive in archives for each in archive.infolist()]
            if repeated := sum(map(is_image_name, listed)) - sum(map(is_image_name, members)):
                self._tally["members replaced by later ones of the same name"] += repeated
            content.seek(0)
            if _start_of(archives[0]) > 0 and content.read(4) == LOCAL_HEADER:
                self._tally["parts at the start of a file that no directory lists"] += 1

    def _read(self, file: FileInfo, places: set[str]) -> Iterator[tuple[str, bytes | OSError]]:
        with self._place.open(file.name) as content, _archives_in(content) as archives:
            members = _members_of(archives)
            wanted = [members[place] for place in places if place in members]
            for archive, member in sorted(wanted, key=lambda each: each[1].header_offset):
                try:
                    with archive.open(member) as image:
                        yield member.filename, read_limited(image)
                except OSError as error:
                    yield member.filename, error
                except VisdivError:
                    raise
                # Damaged, encrypted, or compressed with a method that Python does not support.
                except Exception as error:  # noqa: BLE001  each way of packing has its own
                    yield member.filename, OSError(f"{type(error).__name__}: {error}")


def _members_of(
    archives: list[zipfile.ZipFile],
) -> dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    return {
        name: (archive, member)
        for archive in archives
        for name, member in archive.NameToInfo.items()
    }


def _start_of(archive: zipfile.ZipFile) -> int:
    """Where in its file an archive begins."""
    return min((each.header_offset for each in archive.infolist()), default=archive.start_dir)


def _part_of(content: IO[bytes], start: int, size: int) -> bytes:
    content.seek(start)
    return content.read(size)


@contextmanager
def _archives_in(content: IO[bytes]) -> Iterator[list[zipfile.ZipFile]]:
    """The archives in a file, in order; zipfile itself sees only the last one."""
    with ExitStack() as stack:
        archives = [stack.enter_context(zipfile.ZipFile(content))]
        while len(archives) < MAX_ARCHIVES:
            start = _start_of(archives[0])
            if start <= 0:
                break
            try:
                before = zipfile.ZipFile(
                    io.BufferedReader(Parts(partial(_part_of, content), start))
                )
            except zipfile.BadZipFile:  # such as the program of an archive that unpacks itself
                break
            archives.insert(0, stack.enter_context(before))
        yield archives
