"""Which images of a source are wanted, and what that changes about it.

Here: the options of a source that select images, as one value with a hash. Not here: options that
only say how to reach a source, such as credentials: they select nothing.
"""

import hashlib
import json
from typing import NamedTuple

from visdiv_assets.sources.names import ImageNames


class Selection(NamedTuple):
    """What to take of a source; the default is everything.

    Attributes:
        include: globs; if given, only images that match one of them are taken.
        exclude: globs; images that match one of them are not taken.
        column: the column with the images or their paths; None detects it.
        root: the folder that the paths in a list start at; None is the list's own.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    column: str | None = None
    root: str | None = None

    @property
    def wanted(self) -> ImageNames | None:
        """Whether an image id is taken; None if all are."""
        if not self.include and not self.exclude:
            return None
        return ImageNames(self.include, self.exclude)

    def fingerprint(self, told: str) -> str:
        """128-bit hash in hex of what a source tells about its files, and of this selection.

        Example:
            >>> everything, some = Selection(), Selection(include=("a/**",))
            >>> everything.fingerprint("a.zip 5 ff") == some.fingerprint("a.zip 5 ff")
            False
        """
        if self != Selection():
            told = f"{told}\n{self._digest(*self)}"
        return _hash(told)

    def version(self, version: str) -> str:
        """The version of an image, which differs between columns and between roots.

        Another column or root gives other bytes the same id. Without either, nothing is added.

        Example:
            >>> Selection(include=("a/**",)).version("ff")
            'ff'
        """
        if self.column is None and self.root is None:
            return version
        return f"{version}-{self._digest(self.column, self.root)}"

    @staticmethod
    def _digest(*parts: object) -> str:
        # The order of globs means nothing.
        known = [sorted(set(part)) if isinstance(part, tuple) else part for part in parts]
        return _hash(json.dumps(known))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
