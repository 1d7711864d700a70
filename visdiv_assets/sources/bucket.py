"""Images as objects of an object store: S3, Google Cloud Storage, Azure.

Here: the image objects below a prefix. Not here: requests and credentials (`places.py`).
"""

from collections.abc import Iterable, Iterator, Sequence

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.places import BucketPlace, matcher
from visdiv_assets.sources.source import (
    Item,
    Read,
    from_image_id,
    is_image_name,
    read_concurrently,
    to_image_id,
)

READERS = 32


class BucketSource:
    """The objects below a prefix with an image extension; an image's id is its relative key.

    Args:
        place: the prefix.
        include: globs; if given, only images that match one of them are included.
        exclude: globs; images that match one of them are skipped.
    """

    def __init__(
        self, place: BucketPlace, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._place = place
        self._wanted = matcher(include, exclude)

    @property
    def uri(self) -> str:
        """Scheme, bucket and prefix."""
        return self._place.uri

    def items(self) -> Iterator[Item]:
        """Every image object, yielded as pages of the listing arrive.

        Raises:
            VisdivError: the bucket cannot be listed, or there is no image below the prefix.
        """
        found = others = 0
        try:
            for name, size, version in self._place.files():
                if is_image_name(name) and self._wanted(name):
                    found += 1
                    yield Item(to_image_id(name), size, version)
                else:
                    others += 1
        except OSError as error:
            raise VisdivError(f"cannot list {self.uri}: {error}") from None
        if not found:
            raise VisdivError(f"there are no images below {self.uri} ({others:,} other objects)")

    def fingerprint(self) -> None:
        """None, since nothing is cheaper than listing."""
        return

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """In the given order, with many requests at a time."""
        return read_concurrently(
            lambda image_id: self._place.read(from_image_id(image_id)), image_ids, READERS
        )
