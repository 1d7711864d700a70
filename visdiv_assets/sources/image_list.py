"""Images that are named in a list: .txt, .csv, .tsv, .jsonl, or COCO .json.

Here: which file an entry means. Not here: parsing the lists (`entries.py`), reading files
(`places.py`).
"""

import errno
import posixpath
import re
from collections.abc import Iterable, Iterator

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import without_secrets
from visdiv_assets.sources.entries import Entry, Tally, entries, readings
from visdiv_assets.sources.places import FileInfo, LocalPlace, Place
from visdiv_assets.sources.reaching import brief, check_time, is_away, unlisted, with_place
from visdiv_assets.sources.selection import Selection
from visdiv_assets.sources.source import (
    Item,
    Read,
    from_image_id,
    is_image_name,
    read_concurrently,
    to_image_id,
)
from visdiv_assets.sources.uris import scheme_of

READERS = 16

# A list of nothing but these names archives or tables, not images.
CONTAINERS = re.compile(
    r"\.(tar|tar\.(gz|bz2|xz)|tgz|zip|parquet|pq|arrow|feather)$", re.IGNORECASE
)


class ListSource:
    """The images named in a list; an image's id is its path relative to the root.

    The list's other columns become metadata. An image that is named several times counts once.

    Args:
        place: the folder of the list.
        name: name of the list in that folder.
        root: the folder that paths in the list start at; they must not lead outside it.
        selection: which images to take, and the column that holds their paths.
    """

    def __init__(
        self,
        place: Place,
        name: str,
        root: Place,
        selection: Selection,
    ) -> None:
        self._place, self._name, self._root = place, name, root
        self._selection, self._wanted = selection, selection.wanted
        self.notes: list[str] = []

    @property
    def place(self) -> Place:
        """Where the images are."""
        return self._root

    @property
    def uri(self) -> str:
        """The URI of the list."""
        return f"{self._place.uri.rstrip('/')}/{self._name}"

    def items(self) -> Iterator[Item]:
        """Every image in the list, in its order; sizes and versions of local files are looked up.

        Afterwards, `notes` says what in the list is no image, and how it was read.

        Raises:
            VisdivError: the list cannot be read, names no images, or names only files that do not
                exist.
            Unreachable: where the list or its images are does not answer.
        """
        tally = Tally()
        found = there = archives = unwanted = 0
        lost: tuple[str, str, OSError] | None = None
        listed = self._info()
        try:
            with self._place.open(self._name) as file:
                for entry in entries(file, self._name, self._selection.column, tally):
                    check_time()
                    name, metadata, info = self._look_up(entry, tally)
                    if name is None:
                        continue
                    image_id = to_image_id(name)
                    if self._wanted is not None and not self._wanted(image_id):
                        unwanted += 1
                        continue
                    found += 1
                    archives += bool(CONTAINERS.search(name))
                    if isinstance(info, OSError):
                        if is_away(info):  # the images' folder is, not one of them
                            raise info
                        lost = lost or (entry.written, name, info)
                        there += not _is_missing(info)
                    else:
                        there += 1
                    yield self._item(image_id, metadata, info, listed)
        except VisdivError as error:
            raise with_place(self.uri, error) from None
        except Exception as error:  # noqa: BLE001  each format's library has errors of its own
            raise unlisted(f"cannot read {self.uri}: {brief(str(error))}", error) from None
        self.notes = tally.notes()
        if not found:
            told = [f"{unwanted:,} left out by include and exclude"] if unwanted else []
            told += self.notes
            raise VisdivError(f"{self.uri} names no images ({'; '.join(told) or 'it is empty'})")
        if archives == found:
            raise VisdivError(f"{self.uri}: it lists archives, not images; name them themselves")
        if not there and lost is not None:
            raise VisdivError(self._nothing_there(found, *lost))

    def fingerprint(self) -> str | None:
        """Hash of the version of the list and the selection if the images are remote, else None."""
        if isinstance(self._root, LocalPlace):
            return None
        listed = self._info()
        return self._selection.fingerprint(f"{listed.size:x}-{listed.version}")

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """In the given order, several at a time."""

        def read(image_id: str) -> bytes:
            name = from_image_id(image_id)
            if scheme_of(name):
                raise OSError(f"its address is not below {self._root.uri}; set `root`")
            return self._root.read(name)

        return read_concurrently(read, image_ids, READERS)

    def _info(self) -> FileInfo:
        try:
            return self._place.info(self._name)
        except FileNotFoundError:
            raise VisdivError(f"no such file: {self.uri}") from None
        except OSError as error:
            told = f"cannot read {self.uri}: {error.strerror or error}"
            raise unlisted(told, error) from None

    def _look_up(
        self, entry: Entry, tally: Tally
    ) -> tuple[str | None, dict[str, str], FileInfo | OSError | None]:
        """The name that an entry means, what it says about the image, and what its file is.

        The file is looked for as it is written, then as other systems and tools would mean it.
        Remote files are not looked for. No name is a comment.
        """
        local = isinstance(self._root, LocalPlace)
        written = first = None
        for path, metadata, how in readings(entry, local=local):
            name = self._below_root(path)
            info: FileInfo | OSError | None = None
            if local:
                try:
                    info = self._root.info(name)
                except OSError as error:
                    info = error
            likely = is_image_name(name) and "\\" not in name
            if isinstance(info, FileInfo) or (not local and likely):
                if how:
                    tally[f"paths taken {how}"] += 1
                return name, metadata, info
            written = written or (name, metadata, info)
            if likely:
                first = first or (name, metadata, info)
        if entry.is_line and entry.written.lstrip().startswith("#"):
            tally["comments"] += 1
            return None, {}, None
        return first or written or (None, {}, None)

    def _item(
        self,
        image_id: str,
        metadata: dict[str, str],
        info: FileInfo | OSError | None,
        listed: FileInfo,
    ) -> Item:
        if info is None:
            version = self._selection.version(listed.version)
            return Item(image_id, None, version, metadata or None)
        if isinstance(info, OSError):  # reading it will report the error
            return Item(image_id, None, "unreadable", metadata or None)
        version = self._selection.version(info.version)
        return Item(image_id, info.size, version, metadata or None)

    def _nothing_there(self, count: int, written: str, name: str, error: OSError) -> str:
        """Why not one file of a list exists, and what helps."""
        told = (
            f"{self.uri}: none of the {count:,} files that it names exists"
            if count > 1
            else f"{self.uri}: the file that it names does not exist"
        )
        hint = "set `root` to the folder that its paths start at"
        if re.match(r"[A-Za-z]:[\\/]", written):
            hint = "its paths are those of Windows drives: make them relative, and set `root`"
        elif error.errno is None:  # it leads outside
            hint = "set `root` to a folder above all images"
        elif not is_image_name(name):
            hint = f"{hint}, or `column` to where the paths are"
        rooted = name.startswith("/") or scheme_of(name)
        place = f"below {self._root.uri}" if rooted else f"as {self._root.uri.rstrip('/')}/{name}"
        return f"{told}; the first, {written[:200]!r}, was looked for {place[:300]}; {hint}"

    def _below_root(self, path: str) -> str:
        """A path or address, relative to the root if it is below it, else unchanged."""
        whole = without_secrets(path) if scheme_of(path) else path
        base = self._root.uri.rstrip("/") + "/"
        if whole.startswith(base):
            whole = whole[len(base) :]
        return whole if scheme_of(whole) else posixpath.normpath(whole)


def _is_missing(error: OSError) -> bool:
    """Whether there is no such file below the root, rather than one that cannot be read."""
    return error.errno in (None, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)
