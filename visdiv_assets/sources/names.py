"""Which files of a source count as images, by their names, and what is told about the others.

Here: `include` and `exclude`, extensions, hidden files and the folders of file systems.
Not here: listing (`directory.py`, `bucket.py`, `tar.py`, `zip.py`); tables and lists have no files
to leave out.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import bracex
from wcmatch import glob

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.places import MAX_FILES, compiled
from visdiv_assets.sources.source import IMAGE_EXTENSIONS, to_image_id

# Folders in which systems, NAS boxes and tools keep thumbnails, deleted files and snapshots. They
# are treated as hidden ones are. In lower case.
SYSTEM_FOLDERS = frozenset(
    {
        "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle",
        "@sharebin", "@snapshot", "@tmp", "__macosx", "__pycache__", "lost+found",
        "network recycle bin", "network trash folder", "recycled", "recycler",
        "system volume information", "temporary items", "trashbox", "~snapshot",
    }
)  # fmt: skip

# Patterns of `include` that select nothing by folder or name, so they mean every file.
EVERY_FILE = frozenset({"**", "**/*"})

KINDS_TOLD = 5
KINDS_COUNTED = 1000
MAX_EXTENSION = 16


@dataclass
class LeftOut:
    """What a listing left out.

    Attributes:
        extensions: files by their extension, "" for none: their names are not those of images.
        hidden: hidden files (a leading dot).
        folders: hidden folders and those of systems, by name; what is in them is not counted.
        unmatched: files and folders that `include` or `exclude` leave out.
    """

    extensions: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    folders: Counter[str] = field(default_factory=Counter)
    unmatched: int = 0
    _seen: set[str] = field(default_factory=set, repr=False)

    def count_file(self, base: str) -> None:
        """Count a file whose name is not that of an image."""
        extension = extension_of(base)
        if len(extension) > MAX_EXTENSION or not extension[1:].isalnum():
            extension = ""
        if extension not in self.extensions and len(self.extensions) >= KINDS_COUNTED:
            extension = ".*"
        self.extensions[extension] += 1

    def count_folder(self, path: str, within: str = "") -> None:
        """Count a folder once, however often it is met."""
        if within + path not in self._seen:
            self._seen.add(within + path)
            name = to_image_id(path.rpartition("/")[2])
            known = name in self.folders or len(self.folders) < KINDS_COUNTED
            self.folders[name if known else "*"] += 1

    @property
    def files(self) -> int:
        """Files left out because of their names, without those that `include` and `exclude` say."""
        return self.extensions.total() + self.hidden

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "files": self.files,
            "extensions": dict(self.extensions.most_common()),
            "hidden_files": self.hidden,
            "folders": dict(self.folders.most_common()),
            "by_include_and_exclude": self.unmatched,
        }

    def __str__(self) -> str:
        """One line; empty if nothing was left out because of its name.

        Example:
            >>> left_out = LeftOut()
            >>> for name in ("a.jxl", "b.jxl", "c"):
            ...     left_out.count_file(name)
            >>> str(left_out)
            '3 files left out by their names: 2 × .jxl, 1 without extension'
        """
        told = []
        if self.files:
            kinds = [
                f"{count:,} × {each}" if each else f"{count:,} without extension"
                for each, count in self.extensions.most_common(KINDS_TOLD)
            ]
            rest = len(self.extensions) - len(kinds)
            kinds += [f"{rest:,} more kinds"] if rest else []
            kinds += [f"{self.hidden:,} hidden"] if self.hidden else []
            name = "its name" if self.files == 1 else "their names"
            told.append(f"{_files(self.files)} left out by {name}: {', '.join(kinds)}")
        if self.folders:
            names = [f"{count:,} × {name}" for name, count in self.folders.most_common(KINDS_TOLD)]
            rest = len(self.folders) - len(names)
            names += [f"{rest:,} more names"] if rest else []
            count = self.folders.total()
            what = "1 folder" if count == 1 else f"{count:,} folders"
            told.append(f"{what} left out, hidden or of the system: {', '.join(names)}")
        return "; ".join(told)

    def told(self) -> str:
        """What there is where no image is."""
        told = [str(self)] if str(self) else []
        if self.unmatched:
            told.append(f"{self.unmatched:,} left out by include and exclude")
        return "; ".join(told) or "it is empty"


def left_out_of(source: object) -> LeftOut:
    """What the latest listing of a source left out; nothing where it doesn't tell."""
    left_out: LeftOut = getattr(source, "left_out", LeftOut())
    return left_out


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def extension_of(base: str) -> str:
    """The extension of a file's name in lower case, with its dot.

    Example:
        >>> [extension_of(name) for name in ("a.JPG", "a.tar.gz", "a", ".a")]
        ['.jpg', '.gz', '', '']
    """
    at = base.rfind(".")
    return base[at:].lower() if at > 0 else ""


def is_hidden(part: str) -> bool:
    """Whether a file or folder with this name is left out unless `include` names it.

    Example:
        >>> [is_hidden(name) for name in (".git", "@eaDir", "._a.jpg", "birds")]
        [True, True, True, False]
    """
    dotted = part.startswith(".") and part not in (".", "..")
    return dotted or part.lower() in SYSTEM_FOLDERS


class ImageNames:
    """Which names are taken for images.

    A name has slashes, and is relative to its source. Without patterns, all files with an image
    extension are taken, except hidden ones.

    `exclude` comes first. A pattern that matches a folder excludes everything in it, unless its
    last part is only `*`.

    `include` selects, and can bring in anything. `**` stands for every file. A pattern that says
    an extension (`*.dat`) takes such files, and one that says another part of a name (`scan_*`)
    takes files without extension. Hidden files and folders must be named by a part that starts as
    they do (`.cache/**`, `@eaDir/**`).

    Args:
        include: globs; if given, only names that match one of them are taken.
        exclude: globs; names that match one of them are not taken.

    Raises:
        VisdivError: a pattern is not valid.

    Example:
        >>> names = ImageNames(include=["**/*.jpg", "*.dat"], exclude=["thumbs"])
        >>> [names.takes(name, LeftOut()) for name in ("a/b.jpg", "c.dat", "thumbs/b.jpg", "a.txt")]
        [True, True, False, False]
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self.any_patterns = bool(include or exclude)
        wanted = _folders_in_full(_expanded(include))
        unwanted = _expanded(exclude)
        folders = [folder for each in unwanted if (folder := _folder_of(each))]
        self._include = compiled(wanted)
        self._exclude = compiled([*unwanted, *(f"{each}/**" for each in folders)])
        self._exclude_folders = compiled(folders)
        self._with_extension = compiled([each for each in wanted if _says_extension(each)])
        self._without_extension = compiled([each for each in wanted if _says_name(each)])
        self._naming = [
            (compiled([each]), parts) for each in wanted if (parts := compiled(_named_parts(each)))
        ]
        self._fixed = None if not wanted else [_fixed_part(each) for each in wanted]

    def __call__(self, image_id: str) -> bool:
        """Whether `include` and `exclude` take an image whose name doesn't matter otherwise."""
        if self._exclude is not None and self._exclude.match(image_id):
            return False
        return self._include is None or bool(self._include.match(image_id))

    def takes(self, name: str, left_out: LeftOut, within: str = "") -> bool:
        """Whether a file is taken for an image; one that isn't is counted.

        Args:
            name: relative to its source, or to its archive.
            left_out: counts it if it isn't taken.
            within: what precedes the name in the image id; patterns may say it or not.
        """
        whole = (name, within + name) if within else (name,)
        if _matches(self._exclude, whole):
            left_out.unmatched += 1
            return False
        parts = name.split("/")
        hidden = [at for at, part in enumerate(parts) if is_hidden(part)]
        if hidden and not self._names(whole, [parts[at] for at in hidden]):
            if hidden[0] == len(parts) - 1:
                left_out.hidden += 1
            else:
                left_out.count_folder("/".join(parts[: hidden[0] + 1]), within)
            return False
        if self._include is not None and not _matches(self._include, whole):
            left_out.unmatched += 1
            return False
        extension = extension_of(parts[-1])
        brought = self._with_extension if extension else self._without_extension
        if extension in IMAGE_EXTENSIONS or _matches(brought, whole):
            return True
        left_out.count_file(parts[-1])
        return False

    def enters(self, folder: str, left_out: LeftOut) -> bool:
        """Whether a folder is worth listing; one that isn't is counted.

        Args:
            folder: its path relative to the source, without a slash at its end.
            left_out: counts it if it isn't entered.
        """
        if self.excludes(folder):
            left_out.unmatched += 1
            return False
        base = folder.rpartition("/")[2]
        if is_hidden(base) and not any(parts.match(base) for _, parts in self._naming):
            left_out.count_folder(folder)
            return False
        if self._fixed is not None and not any(_leads(folder, each) for each in self._fixed):
            left_out.unmatched += 1
            return False
        return True

    def excludes(self, folder: str) -> bool:
        """Whether `exclude` leaves out a folder with everything in it."""
        return self._exclude_folders is not None and bool(self._exclude_folders.match(folder))

    def _names(self, whole: Iterable[str], hidden: Iterable[str]) -> bool:
        return any(
            _matches(pattern, whole) and all(map(parts.match, hidden))
            for pattern, parts in self._naming
        )


def _matches(pattern: re.Pattern[str] | None, names: Iterable[str]) -> bool:
    return pattern is not None and any(map(pattern.match, names))


def rules() -> str:
    """A hash of the names that count as images, which changes with the version of this package."""
    told = " ".join([*sorted(IMAGE_EXTENSIONS), *sorted(SYSTEM_FOLDERS)])
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _expanded(patterns: Sequence[str]) -> list[str]:
    """The patterns without braces."""
    try:
        return [
            expanded.removeprefix("./")
            for each in patterns
            for expanded in bracex.iexpand(each, keep_escapes=True, limit=MAX_FILES)
        ]
    except Exception as error:  # noqa: BLE001  bracex has errors of its own
        shown = ", ".join(patterns)[:200]
        raise VisdivError(f"invalid pattern in include or exclude ({shown}): {error}") from None


def _folders_in_full(patterns: Iterable[str]) -> list[str]:
    return [f"{each}**" if each.endswith("/") else each for each in patterns]


def _folder_of(pattern: str) -> str | None:
    """The folders that a pattern of `exclude` leaves out with everything in them."""
    if pattern.rstrip("/") == "**":
        return "**"
    folder = pattern.removesuffix("/**").rstrip("/")
    return folder if folder and folder.rpartition("/")[2].strip("*") else None


def _says_extension(pattern: str) -> bool:
    base = pattern.rpartition("/")[2]
    return pattern in EVERY_FILE or re.search(r"\.[*?]*[^*?.]", base) is not None


def _says_name(pattern: str) -> bool:
    base = pattern.rpartition("/")[2].rpartition("#")[2]
    return pattern in EVERY_FILE or bool(base.strip("*?"))


def _named_parts(pattern: str) -> list[str]:
    """The parts of a pattern that say how a name starts; in an archive, its first follows a `#`."""
    parts = pattern.split("/")
    parts += [inside for each in parts if (inside := each.partition("#")[2])]
    return [each for each in parts if each and each[0] not in "*?["]


def _fixed_part(pattern: str) -> str:
    """The folder that a pattern can't lead out of.

    Example:
        >>> [_fixed_part(pattern) for pattern in ("a/b/*.jpg", "**/c", "a/b.jpg")]
        ['a/b', '', 'a']
    """
    folder, _, _ = pattern.rpartition("/")
    parts = folder.split("/")
    at = next((at for at, part in enumerate(parts) if glob.is_magic(part) or "\\" in part), None)
    return "/".join(parts[:at])


def _leads(folder: str, fixed: str) -> bool:
    """Whether a folder is above or below another."""
    return f"{fixed}/".startswith(f"{folder}/") or f"{folder}/".startswith(
        f"{fixed}/" if fixed else ""
    )
