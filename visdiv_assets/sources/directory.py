"""Images as files in a directory and the directories below it."""

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

# What a directory without images may hold instead, and how to name it then.
CONTAINERS = {".parquet": "*.parquet", ".tar": "*.tar", ".zip": "*.zip", ".arrow": "*.arrow"}


class DirectorySource:
    """The image files of a directory tree, by extension; an image's id is its relative path.

    Hidden files and folders (a leading dot) are left out. Linked folders are followed after all
    others, each real folder once, so that loops end and an image has the same id in every order
    of listing.

    Args:
        path: the directory.
        include: globs; where given, only images that one of them matches count.
        exclude: globs; images that one of them matches do not count.
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
                holds no image files at all.
        """
        others: Counter[str] = Counter()
        found = 0
        # Hundreds of thousands of turns a second: nothing is looked up or built without need.
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
            except OSError:  # a dangling link; reading it will say why
                yield Item(name, 0, "unreadable")
            else:
                yield Item(name, status.st_size, f"{status.st_mtime_ns:x}")
        if not found:
            chosen = " that include and exclude let through" if self._wanted else ""
            raise VisdivError(f"there are no image files in {self.path}{chosen}{_describe(others)}")

    def fingerprint(self) -> None:
        """Nothing is cheaper than listing."""
        return

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """In the order asked for."""
        return read_concurrently(
            lambda image_id: self._place.read(from_image_id(image_id)), image_ids, READERS
        )

    def _files(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """What is neither a directory nor hidden, each with its folder relative to the root."""
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
                raise VisdivError(f"there is nothing at {_shown(folder)}") from error
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
    hint = next((f"; for those, add /{CONTAINERS[e]}" for e in others if e in CONTAINERS), "")
    return f" ({others.total()} other files: {kinds}{hint})"
