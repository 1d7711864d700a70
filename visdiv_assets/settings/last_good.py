"""What holds while `visdiv.yaml` is broken, missing or cut off: the last good settings.

Here: telling a file that cannot be meant from one that is, and keeping the text of the last good
one, also for the next process. Dagster's side works with this; a command refuses a broken file.
Not here: what is wrong with a file (`reading.py`); what is wrong with one dataset, which makes no
file bad.
"""

import errno
import hashlib
import logging
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import Settings
from visdiv_assets.settings.reading import (
    CONFIG_FILE,
    LARGEST_FILE,
    absolute_path,
    parsed,
    read_text,
    settings_of,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watched:
    """What is known of a settings file now.

    Attributes:
        settings: those in force: the file's, or the last good ones; None if there are none.
        problem: why the file itself cannot be used, in a sentence; None if it can.
    """

    settings: Settings | None
    problem: str | None


class WatchedSettings:
    """Settings files, each with what it said when it was last good.

    Kept is the text: variables are filled in anew each time, and their values are written nowhere.
    It is kept in memory and in a folder of the user's, for a process that starts while the file is
    broken.

    Example:
        >>> WatchedSettings().watch(Path("/nowhere/visdiv.yaml")).problem
        'cannot read the settings file /nowhere/visdiv.yaml: No such file or directory'
    """

    def __init__(self) -> None:
        self._good: dict[Path, str] = {}
        self._kept: dict[Path, str] = {}
        self._told: set[str] = set()

    def load(self, path: Path | None = None) -> Settings:
        """The settings in force.

        Args:
            path: the file; default: `$VISDIV_CONFIG`, else `./visdiv.yaml`.

        Raises:
            VisdivError: the file cannot be used and was never good.
        """
        watched = self.watch(path)
        if watched.settings is None:
            raise VisdivError(watched.problem)
        if watched.problem:
            self._tell_once(f"{watched.problem}; the last good settings hold until it is corrected")
        return watched.settings

    def watch(self, path: Path | None = None) -> Watched:
        """The settings in force, and what is wrong with the file.

        Args:
            path: as for `load`.
        """
        named = path or os.environ.get("VISDIV_CONFIG")
        try:
            place = absolute_path(named or CONFIG_FILE)
        except OSError:
            return Watched(None, "the folder that Dagster was started in no longer exists")
        except VisdivError as error:
            return Watched(None, str(error))
        try:
            if not named and not os.path.lexists(place):
                raise VisdivError(
                    f"there is no {CONFIG_FILE} in {place.parent}; start Dagster in its folder, or "
                    "set VISDIV_CONFIG"
                )
            return Watched(self._read(place), None)
        except VisdivError as error:
            return Watched(self._last_good(place), str(error))

    def _read(self, place: Path) -> Settings:
        """What the file says; VisdivError if that cannot be meant."""
        with suppress(OSError):  # reading says what is wrong
            if not stat.S_ISREG(place.stat().st_mode):  # reading a pipe would wait for ever
                raise VisdivError(f"cannot read the settings file {place}: it is not a file")
        text = read_text(place)
        written = parsed(text, place)
        if written.is_empty:
            raise VisdivError(f"{place} is empty")
        settings = settings_of(text, place)
        # An editor, a merge or a full disk may have cut it off.
        good = self._last_text(place) if written.datasets is None else None
        if good is not None and parsed(good, place).datasets:
            raise VisdivError(
                f"{place} has lost its datasets; write `datasets: {{}}` if that is meant"
            )
        self._keep(place, text)
        return settings

    def _last_good(self, place: Path) -> Settings | None:
        text = self._last_text(place)
        try:
            return None if text is None else settings_of(text, place)
        except VisdivError:  # a variable is no longer set
            return None

    def _last_text(self, place: Path) -> str | None:
        """What the file said when it was last good; None if nobody knows."""
        text = self._good.get(place)
        return kept_text(place) if text is None else text

    def _keep(self, place: Path, text: str) -> None:
        self._good[place] = text
        if self._kept.get(place) == text:
            return
        try:
            if kept_text(place) != text:
                keep_text(place, text)
            self._kept[place] = text
        except OSError as error:
            self._tell_once(
                f"the last good settings cannot be kept in {state_folder()}: {error.strerror}; "
                "they are lost when this process ends"
            )

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning("%s", message)


def state_folder() -> Path:
    """Where the texts are kept: in `$VISDIV_STATE_DIR`, else in a folder of the user's own."""
    place = os.environ.get("VISDIV_STATE_DIR") or platformdirs.user_state_dir("visdiv")
    return absolute_path(place) / "settings"


def keep_text(place: Path, text: str) -> None:
    """Keep the text of a settings file for the next process.

    Args:
        place: the absolute path of the settings file.
        text: what it says.

    Raises:
        OSError: it cannot be written.
    """
    folder = state_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(folder.lstat(), stat.S_IFDIR):
        folder.chmod(0o700)  # which fails if the folder is somebody else's
        if not _is_ours(folder.lstat(), stat.S_IFDIR):
            raise OSError(errno.EPERM, "it is a link")
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=folder)  # for this user's eyes only
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(_file_of(place))
    finally:
        partial.unlink(missing_ok=True)


def kept_text(place: Path) -> str | None:
    """What was kept of a settings file; None if that is nothing, or nothing to be trusted.

    Args:
        place: the absolute path of the settings file.
    """
    try:
        if not _is_ours(state_folder().lstat(), stat.S_IFDIR):
            return None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # neither a link nor a pipe
        with os.fdopen(os.open(_file_of(place), flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not _is_ours(found, stat.S_IFREG) or found.st_size > LARGEST_FILE:
                return None
            text = file.read(LARGEST_FILE).decode()
        return None if parsed(text, place).is_empty else text
    except (OSError, ValueError, VisdivError):
        return None


def _file_of(place: Path) -> Path:
    digest = hashlib.blake2b(os.fsencode(place), digest_size=16).hexdigest()
    return state_folder() / f"{digest}.yaml"


def _is_ours(found: os.stat_result, kind: int) -> bool:
    """Whether it is what it should be, and this user's alone."""
    mine = found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return mine and stat.S_IFMT(found.st_mode) == kind
