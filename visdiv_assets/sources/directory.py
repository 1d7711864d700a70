"""Images as files in a directory tree."""

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.places import LocalPlace, matcher
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
    """The files of a directory tree with an image extension; an image's id is its relative path.

    Hidden files and folders (a leading dot) are skipped. Linked folders come after all others,
    and each real folder is visited once. So loops end, and ids do not depend on the order of
    listing.

    Args:
        path: the directory.
        include: globs; if given, only images that match one of them are included.
        exclude: globs; images that match one of them are skipped.
    """

    def __init__(
        self, path: str | Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self.path = Path(path).absolute()
        self._place = LocalPlace(self.path)
        self._wanted = matcher(include, exclude) if include or exclude else None

    @property
    def uri(self) -> str:
        """The directory's absolute path."""
        return str(self.path)

    def items(self) -> Iterator[Item]:
        """Every image file, in no particular order.

        Raises:
            VisdivError: the path is not a directory, a folder in it cannot be listed, or it
                contains no image files.
        """
        others: Counter[str] = Counter()
        found = 0
        # This loop runs hundreds of thousands of times per second, so it avoids needless work.
        for prefix, entry in self._files():
            name = entry.name
            dot = name.rfind(".")
            extension = name[dot:].lower() if dot > 0 else ""
            if extension not in IMAGE_EXTENSIONS:
                others[extension or "no extension"] += 1
                continue
            name = prefix + name
            if self._wanted is not None and not self._wanted(name):
                continue
            found += 1
            if not name.isascii() or "\\x" in name:
                name = to_image_id(name)
            try:
                status = entry.stat()
            except OSError:  # a dangling link; reading it will report the error
                yield Item(name, 0, "unreadable")
            else:
                yield Item(name, status.st_size, f"{status.st_mtime_ns:x}")
        if not found:
            chosen = " that match include and exclude" if self._wanted else ""
            raise VisdivError(f"there are no image files in {self.path}{chosen}{_describe(others)}")

    def fingerprint(self) -> None:
        """None, since nothing is cheaper than listing."""
        return

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """In the given order."""
        return read_concurrently(
            lambda image_id: self._place.read(from_image_id(image_id)), image_ids, READERS
        )

    def _files(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """All entries that are neither hidden nor a directory, each with its relative folder."""
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
                        if entry.name[0] == ".":
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{entry.path}/")
                        elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112
                            heapq.heappush(links, f"{entry.path}/")
                        else:
                            yield prefix, entry
            except FileNotFoundError as error:
                raise VisdivError(f"no such file or directory: {_shown(folder)}") from error
            except NotADirectoryError as error:
                raise VisdivError(f"{_shown(folder)} is not a directory") from error
            except OSError as error:
                raise VisdivError(f"cannot list {_shown(folder)}: {error.strerror}") from error


def _shown(folder: str) -> str:
    return folder.rstrip("/") or "/"


def _describe(others: Counter[str]) -> str:
    if not others:
        return " (it is empty)"
    kinds = ", ".join(f"{count} × {extension}" for extension, count in others.most_common(3))
    hint = next(
        (f"; to read these, add /{CONTAINERS[e]} to the path" for e in others if e in CONTAINERS),
        "",
    )
    return f" ({others.total()} other files: {kinds}{hint})"
