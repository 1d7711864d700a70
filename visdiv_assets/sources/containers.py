"""The common part of all sources whose images are inside larger files.

Here: finding the files, a fingerprint of their sizes and versions, ids `file#place`, reading file
by file, pieces of a manifest by file. Not here: any format (`tar.py`, `zip.py`, `parquet.py`,
`arrow.py`).
"""

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.names import ImageNames, LeftOut, rules
from visdiv_assets.sources.pieces import Pieces
from visdiv_assets.sources.places import FileInfo, Place, find_files
from visdiv_assets.sources.reaching import check_time, is_behind, unlisted, with_place
from visdiv_assets.sources.selection import Selection
from visdiv_assets.sources.source import Item, Read, Source, from_image_id, to_image_id


class ContainerSource(ABC):
    """Images inside the files that match a pattern of globs and braces.

    An image's id is `file#place`; the format defines the place.

    Args:
        place: the folder of the files.
        pattern: their names.
        selection: which images to take.
    """

    def __init__(self, place: Place, pattern: str, selection: Selection) -> None:
        self._place, self._pattern, self._selection = place, pattern, selection
        self._wanted = selection.wanted
        self._tally: Counter[str] = Counter()
        self.left_out = LeftOut()

    @property
    def uri(self) -> str:
        """The folder and the pattern."""
        return self._uri_of(self._pattern)

    @property
    def notes(self) -> list[str]:
        """What the files hold beside images, as far as `items` has seen them."""
        return [f"{what}: {count:,}" for what, count in self._tally.items()]

    @cached_property
    def files(self) -> list[FileInfo]:
        """The files, sorted by name; raises VisdivError if there are none."""
        return find_files(self._place, self._pattern)

    @abstractmethod
    def _items(self, file: FileInfo) -> Iterator[Item]:
        """The images in a file, with their places instead of ids."""

    @abstractmethod
    def _read(self, file: FileInfo, places: set[str]) -> Iterator[tuple[str, bytes | OSError]]:
        """The content of these places; places that are not yielded are reported as missing."""

    def items(self) -> Iterator[Item]:
        """Every image, file by file.

        Raises:
            VisdivError: a file is missing, damaged or of another format, or there are no images.
            Unreachable: where they are does not answer.
        """
        self.left_out = left_out = LeftOut()
        found = False
        self._tally.clear()
        for file in self.files:
            name = to_image_id(file.name)
            try:
                for item in self._items(file):
                    check_time()
                    image_id = f"{name}#{to_image_id(item.image_id)}"
                    if self._wanted is None or self._wanted(image_id):
                        found = True
                        version = self._selection.version(item.version)
                        yield item._replace(image_id=image_id, version=version)
                    else:
                        left_out.unmatched += 1
            except VisdivError as error:
                raise with_place(self._uri_of(file.name), error) from None
            except Exception as error:  # noqa: BLE001  on damaged files, libraries raise anything
                told = f"cannot list {self._uri_of(file.name)}: {_reason(error)}"
                raise unlisted(told, error) from None
        if not found:
            told = "; ".join([left_out.told(), *self.notes])
            raise VisdivError(f"there are no images in {self.uri} ({told})")

    def fingerprint(self) -> str:
        """Hash of the files' names, sizes and versions, and of the selection; no file is opened.

        Raises:
            VisdivError: the files cannot be found.
        """
        self._look_again()
        told = "\n".join(f"{file.name!r} {file.size} {file.version}" for file in self.files)
        return self._selection.fingerprint(told + self._rules())

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """File by file, and within a file in storage order.

        Raises:
            Unreachable: where the files are does not answer any more.
        """
        files = self._by_name
        numbered = enumerate(image_ids)
        for name, group in itertools.groupby(numbered, key=lambda each: self.file_of(each[1])):
            left = {from_image_id(image_id[len(name) + 1 :]): at for at, image_id in group}
            gone = FileNotFoundError("it is no longer in its file")
            why: OSError = gone
            if name in files:
                try:
                    for place, data in self._read(files[name], set(left)):
                        yield Read(left.pop(place), data)
                except VisdivError:  # the place is gone, not the file
                    raise
                except Exception as error:  # noqa: BLE001  as above
                    told = f"its file cannot be read: {_reason(error)}"
                    if is_behind(error):  # not this file's fault, so its images are no failures
                        raise unlisted(f"{self._uri_of(files[name].name)}: {told}", error) from None
                    why = OSError(told)
            yield from (Read(at, why) for at in left.values())

    def file_of(self, image_id: str) -> str:
        """The file in an id, or "" if it is gone; names may contain `#` themselves."""
        at = image_id.find("#")
        while at >= 0 and image_id[:at] not in self._by_name:
            at = image_id.find("#", at + 1)
        return image_id[: max(at, 0)]

    def _look_again(self) -> None:
        """Forget which files there were."""
        for found in ("files", "_by_name"):
            self.__dict__.pop(found, None)

    @cached_property
    def _by_name(self) -> dict[str, FileInfo]:
        return {to_image_id(file.name): file for file in self.files}

    def _rules(self) -> str:
        """What else decides which images are listed: a part of the fingerprint."""
        return ""

    def _uri_of(self, name: str) -> str:
        return f"{self._place.uri.rstrip('/')}/{name}"


class ArchiveSource(ContainerSource):
    """Images inside archives of files, which are taken for images by their names.

    Args:
        place: the folder of the archives.
        pattern: their names.
        selection: which images to take.
    """

    def __init__(self, place: Place, pattern: str, selection: Selection) -> None:
        super().__init__(place, pattern, selection)
        self._wanted, self._names = None, selection.wanted or ImageNames()

    def _takes(self, file: FileInfo, member: str) -> bool:
        return self._names.takes(member, self.left_out, f"{to_image_id(file.name)}#")

    def _rules(self) -> str:
        return rules()


def whole_pieces(images: Pieces, source: Source) -> Iterator[pa.Table]:
    """Pieces of a manifest, none of which ends within a container, so that each is read once.

    Args:
        images: rows of the manifest; those of one container follow each other.
        source: whose images they are.
    """
    left = images.schema.empty_table()
    for piece in images():
        left = pa.concat_tables([left, piece])
        last = ""
        if isinstance(source, ContainerSource) and len(left):
            last = source.file_of(left["image_id"][-1].as_py())
        whole = len(left)
        if last:  # the next piece may have more of it
            whole -= int(pc.sum(pc.starts_with(left["image_id"], f"{last}#")).as_py())
        if whole:
            yield left.slice(0, whole)
        left = left.slice(whole)
    if len(left):
        yield left


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
