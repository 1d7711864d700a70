"""Taking URIs apart.

Here: text alone. Not here: their secrets (`settings/secrets.py`), opening what a URI names
(`opening.py`, `places.py`).
"""

import re


def has_magic(name: str) -> bool:
    """Whether a name contains globs or braces."""
    return bool(re.search(r"[*?\[{]", name))


def scheme_of(uri: str) -> str:
    """`s3` for s3://…, empty for a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return match[1].lower() if match else ""


def split_uri(uri: str) -> tuple[str, str]:
    """The folder of a URI's files, and the rest: a name or a pattern of globs and braces.

    Example:
        >>> split_uri("s3://bucket/hf/*/train-*.parquet")
        ('s3://bucket/hf', '*/train-*.parquet')
        >>> split_uri("/data/photos.zip")
        ('/data', 'photos.zip')
    """
    scheme = scheme_of(uri)
    head, separator, path = uri.partition("://") if scheme else ("", "", uri)
    parts = path.split("/")
    fixed = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts) - 1)
    fixed = max(fixed, 1) if scheme else fixed  # a bucket's name is neither a glob nor a file
    folder = "/".join(parts[:fixed])
    if not folder and not scheme:
        folder = "/" if path.startswith("/") else "."
    return head + separator + folder, "/".join(parts[fixed:])
