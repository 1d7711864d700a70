"""Images as files in a directory tree."""

import errno
import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from wcmatch import glob

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.names import ImageNames, LeftOut
from visdiv_assets.sources.places import LocalPlace
from visdiv_assets.sources.reaching import check_time, is_away, unlisted
from visdiv_assets.sources.source import (
    IMAGE_EXTENSIONS,
    Item,
    Read,
    from_image_id,
    read_concurrently,
    to_image_id,
)

READERS = 4

# Container files that a directory without images may hold, and the pattern to read them with.
CONTAINERS = {".parquet": "*.parquet", ".tar": "*.tar", ".zip": "*.zip", ".arrow": "*.arrow"}


class DirectorySource:
    """The image files of a directory tree, as `ImageNames` says; an image's id is its path.

    Excluded and hidden folders are not entered. Linked folders come after all others, and each
    real folder is visited once. So loops end, and ids do not depend on the order of listing.

    Args:
        path: the directory.
        include: globs; if given, only files that match one of them are included.
        exclude: globs; files that match one of them are skipped.
    """

    def __init__(
        self, path: str | Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self.path = Path(path).absolute()
        self.place = LocalPlace(self.path)
        self._names = ImageNames(include, exclude)
        self.left_out = LeftOut()

    @property
    def uri(self) -> str:
        """The directory's absolute path."""
        return str(self.path)

    def items(self) -> Iterator[Item]:
        """Every image file, in no particular order; `left_out` tells about the other files.

        Raises:
            VisdivError: the path is not a directory, a folder in it cannot be listed, or it
                contains no image files.
            Unreachable: it is on a mount whose server or device is gone.
        """
        left_out = LeftOut()
        found = 0
        chosen = self._names.any_patterns
        # This loop runs hundreds of thousands of times per second, so it avoids needless work.
        for prefix, entry in self._files(left_out):
            name = entry.name
            dot = name.rfind(".")
            known = dot > 0 and name[0] != "." and name[dot:].lower() in IMAGE_EXTENSIONS
            name = prefix + name
            if (chosen or not known) and not self._names.takes(name, left_out):
                continue
            found += 1
            if not name.isascii() or "\\x" in name:
                name = to_image_id(name)
            try:
                status = entry.stat()
            except OSError as error:  # a dangling link; reading it will report the error
                if is_away(error):
                    raise unlisted(f"cannot list {self.path}: {error.strerror}", error) from None
                yield Item(name, 0, "unreadable")
            else:
                yield Item(name, status.st_size, f"{status.st_mtime_ns:x}")
        if not found:
            raise VisdivError(f"there are no image files in {self.path} ({_describe(left_out)})")
        self.left_out = left_out

    def fingerprint(self) -> None:
        """None, since nothing is cheaper than listing."""
        return

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """In the given order."""
        return read_concurrently(
            lambda image_id: self.place.read(from_image_id(image_id)), image_ids, READERS
        )

    def _files(self, left_out: LeftOut) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """The entries that are not a directory, each with its relative folder."""
        visited: set[tuple[int, int]] = set()
        root = os.path.join(self.path, "")
        folders, links = [root], list[str]()
        while folders or links:
            folder = folders.pop() if folders else heapq.heappop(links)
            try:
                status = os.stat(folder)  # noqa: PTH116
                if (status.st_dev, status.st_ino) in visited:
                    continue
                visited.add((status.st_dev, status.st_ino))
                prefix = folder[len(root) :]
                with os.scandir(folder) as entries:
                    for entry in entries:
                        check_time()
                        if entry.is_dir(follow_symlinks=False):
                            if self._names.enters(prefix + entry.name, left_out):
                                folders.append(f"{entry.path}/")
                            elif self._names.excludes(prefix + entry.name):
                                # What is excluded does not come back by a link.
                                own = os.stat(entry.path)  # noqa: PTH116
                                visited.add((own.st_dev, own.st_ino))
                        elif entry.is_symlink() and _leads_to_folder(entry):
                            if self._names.enters(prefix + entry.name, left_out):
                                heapq.heappush(links, f"{entry.path}/")
                        else:
                            yield prefix, entry
            except FileNotFoundError as error:
                raise VisdivError(f"no such file or directory: {_shown(folder)}") from error
            except NotADirectoryError as error:
                raise VisdivError(f"{_shown(folder)} is not a directory") from error
            except OSError as error:
                below = _shown(folder[len(root) :])
                hint = ""
                if folder != root and error.errno in (errno.EACCES, errno.EPERM):
                    pattern = glob.escape(to_image_id(below))
                    hint = f'; to leave it out, set exclude: ["{pattern}/**"] in the settings'
                told = f"cannot list {_shown(folder)}: {error.strerror}{hint}"
                raise unlisted(told, error) from error


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    """Whether a link does; raises OSError if where it leads is out of reach, not missing."""
    try:
        return link.is_dir()
    except OSError as error:
        if is_away(error):
            raise
        return False


def _shown(folder: str) -> str:
    return folder.rstrip("/") or "/"


def _describe(left_out: LeftOut) -> str:
    kind = next((each for each in CONTAINERS if each in left_out.extensions), None)
    hint = f"; to read these, add /{CONTAINERS[kind]} to the path" if kind else ""
    return left_out.told() + hint
