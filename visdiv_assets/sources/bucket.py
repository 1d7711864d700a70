"""Images as objects of an object store: S3, Google Cloud Storage, Azure.

Here: the image objects below a prefix. Not here: requests and credentials (`places.py`).
"""

from collections.abc import Iterable, Iterator, Sequence

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.names import ImageNames, LeftOut
from visdiv_assets.sources.places import BucketPlace
from visdiv_assets.sources.reaching import unlisted
from visdiv_assets.sources.source import (
    Item,
    Read,
    from_image_id,
    read_concurrently,
    to_image_id,
)

READERS = 32


class BucketSource:
    """The image objects below a prefix, as `ImageNames` says; an image's id is its relative key.

    Args:
        place: the prefix.
        include: globs; if given, only objects that match one of them are included.
        exclude: globs; objects that match one of them are skipped.
    """

    def __init__(
        self, place: BucketPlace, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._place = place
        self._names = ImageNames(include, exclude)
        self.left_out = LeftOut()

    @property
    def uri(self) -> str:
        """Scheme, bucket and prefix."""
        return self._place.uri

    def items(self) -> Iterator[Item]:
        """Every image object, yielded as pages arrive; `left_out` tells about the others.

        Raises:
            VisdivError: the bucket cannot be listed, or there is no image below the prefix.
            Unreachable: the server does not answer.
        """
        left_out = LeftOut()
        found = False
        try:
            for name, size, version in self._place.files():
                # Consoles mark a folder by an object with its name.
                if not name.endswith("/") and self._names.takes(name, left_out):
                    found = True
                    yield Item(to_image_id(name), size, version)
        except OSError as error:
            raise unlisted(f"cannot list {self.uri}: {error}", error) from None
        if not found:
            raise VisdivError(f"there are no images below {self.uri} ({left_out.told()})")
        self.left_out = left_out

    def fingerprint(self) -> None:
        """None, since nothing is cheaper than listing."""
        return

    def read_all(self, image_ids: Iterable[str]) -> Iterator[Read]:
        """In the given order, with many requests at a time."""
        return read_concurrently(
            lambda image_id: self._place.read(from_image_id(image_id)), image_ids, READERS
        )
