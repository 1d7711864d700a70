"""Opening the source that a URI names.

Here: the choice by scheme and extension. Not here: the sources.
"""

import os
import re
from pathlib import Path

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SourceSettings
from visdiv_assets.settings.secrets import WEB_SCHEMES, redacted, without_secrets
from visdiv_assets.sources.arrow import SPLITS, STATE, ArrowSource
from visdiv_assets.sources.bucket import BucketSource
from visdiv_assets.sources.directory import DirectorySource
from visdiv_assets.sources.image_list import ListSource
from visdiv_assets.sources.names import EVERY_FILE
from visdiv_assets.sources.parquet import ParquetSource
from visdiv_assets.sources.places import BucketPlace, open_place
from visdiv_assets.sources.reaching import unlisted
from visdiv_assets.sources.selection import Selection
from visdiv_assets.sources.source import Source, is_image_name
from visdiv_assets.sources.tar import TarSource
from visdiv_assets.sources.uris import has_magic, scheme_of, split_uri
from visdiv_assets.sources.zip import ZipSource

LIST = re.compile(r"\.(txt|lst|csv|tsv|jsonl|ndjson|json)$", re.IGNORECASE)
TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz)$", re.IGNORECASE)
ZIP = re.compile(r"\.zip$", re.IGNORECASE)
PARQUET = re.compile(r"\.(parquet|pq)$", re.IGNORECASE)
ARROW = re.compile(r"\.(arrow|feather)$", re.IGNORECASE)

# An address that lacks a slash, perhaps behind the folder of the settings.
ONE_SLASH = re.compile(r"(^|/)(https?|s3a?|gs|az|abfss?|s?ftp):/(?!/)", re.IGNORECASE)

KINDS = (
    "directories, object store prefixes, *.parquet, *.tar, *.tar.gz, *.zip, folders written by "
    "save_to_disk, and lists (.txt, .lst, .csv, .tsv, .jsonl, .ndjson, .json such as COCO)"
)


def open_source(source: str | SourceSettings) -> Source:
    """The source that a URI or a source's settings name. Nothing is read yet.

    Raises:
        VisdivError: this kind of source is not supported, or its URI is invalid.
        Unreachable: it is on a mount whose server or device is gone.
    """
    if isinstance(source, str):
        # Skips validation: unlike settings in a file, a path may have bytes that are not UTF-8.
        source = SourceSettings.model_construct(uri=source)
    uri = source.uri.removeprefix("file://")
    if not uri:
        raise VisdivError("the source is empty; give a path or a URI")
    if "\0" in uri:
        raise VisdivError("the source contains a NUL character")
    try:
        os.fsencode(uri)
        is_folder = not scheme_of(uri) and Path(uri).is_dir()
        is_saved = is_folder and any((Path(uri) / name).is_file() for name in (STATE, SPLITS))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not valid Unicode"
        told = f"cannot open {without_secrets(uri)[:200]!r}: {reason}"
        raise unlisted(told, error) from None
    if ONE_SLASH.search(uri) and not is_folder:  # as a path, errors would show its login
        raise VisdivError(f"{redacted(uri)} is not a valid address; write it with two slashes")
    if not scheme_of(uri) and is_image_name(uri) and Path(uri).is_file():
        raise VisdivError(f"{uri} is a single image; name its folder, or a list of images")
    if is_folder:
        if is_saved:
            return ArrowSource(open_place(uri, {}), "", _selection(source))
        return DirectorySource(uri, source.include, source.exclude)
    address, _, query = uri.partition("?") if scheme_of(uri) in WEB_SCHEMES else (uri, "", "")
    folder, name = _split(address)
    query = f"?{query}" if query else ""
    if container := _container(folder + query, name, source):
        return container
    if LIST.search(name):
        place = open_place(folder + query, source.options)
        if source.root is None:
            return ListSource(place, name, place, _selection(source))
        root = open_place(source.root, source.options)
        return ListSource(place, name, root, _selection(source)._replace(root=root.uri))
    if scheme_of(uri) in WEB_SCHEMES:
        raise VisdivError(
            f"cannot tell the type of {without_secrets(uri)} from its name; supported are {KINDS}"
        )
    chosen = _chosen(name)
    # At the end of a path, these name a folder's images; in `include`, every file.
    include = [*source.include, *([name] if chosen and name not in EVERY_FILE else [])]
    place = open_place(folder if chosen else uri, source.options)
    if isinstance(place, BucketPlace):
        return BucketSource(place, include, source.exclude)
    return DirectorySource(folder if chosen else uri, include, source.exclude)


def check_exists(source: Source) -> None:
    """Look for the folder or the files of a source on this machine; what is in them is not read.

    Raises:
        VisdivError: there are none.
    """
    if isinstance(source, DirectorySource):
        if not source.path.exists():
            raise VisdivError(f"no such file or directory: {source.path}")
        if not source.path.is_dir():
            raise VisdivError(f"{source.path} is not a directory")
    elif isinstance(source, ListSource):
        if not Path(source.uri).is_file():
            raise VisdivError(f"no such file: {source.uri}")
    else:
        source.fingerprint()  # raises if there are no files


def _container(folder: str, name: str, source: SourceSettings) -> Source | None:
    selection = _selection(source)
    for pattern, archive in ((TAR, TarSource), (ZIP, ZipSource)):
        if pattern.search(name):  # an archive has no columns
            selection = selection._replace(column=None)
            return archive(open_place(folder, source.options), name, selection)
    for pattern, table in ((PARQUET, ParquetSource), (ARROW, ArrowSource)):
        if pattern.search(name):
            return table(open_place(folder, source.options), name, selection)
    return None


def _split(address: str) -> tuple[str, str]:
    """As `split_uri`, but a folder that is really called `[2024] x` is no pattern.

    Nor is the name of a list, which is one file.
    """
    folder, name = split_uri(address)
    while "/" in name and not scheme_of(address):
        head, _, rest = name.partition("/")
        if not os.path.isdir(os.path.join(folder, head)):  # noqa: PTH112  Path raises
            break
        folder, name = os.path.join(folder, head), rest
    if LIST.search(name) and "/" in name:
        below, _, name = name.rpartition("/")
        folder = f"{folder.rstrip('/')}/{below}"
    return folder, name


def _chosen(name: str) -> bool:
    """Whether a name selects images of a folder, as `**/*.jpg` does."""
    return has_magic(name) and (is_image_name(name) or "*" in name)


def _selection(source: SourceSettings) -> Selection:
    """The options that select images; all others only say how to reach them."""
    return Selection(tuple(source.include), tuple(source.exclude), source.column)
