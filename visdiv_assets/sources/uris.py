"""Taking URIs apart, and keeping their secrets out of what people read.

Here: text alone. Not here: opening what a URI names (`opening.py`, `places.py`).
"""

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

BUCKET_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "abfs", "abfss"})
WEB_SCHEMES = frozenset({"http", "https"})

# Shorter values in the environment do not count as secrets: they appear in any text by chance.
MIN_SECRET_CHARACTERS = 8


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


def secrets_in(uri: str, options: Mapping[str, str]) -> list[str]:
    """Texts that must never be shown: user, password and query of a URI, values of options."""
    parts = urlsplit(uri)
    known = [parts.username, parts.password, parts.query, *options.values()]
    shown = {"true", "false", options.get("endpoint"), options.get("region")}
    secrets = {each for each in known if each and each not in shown}
    return sorted(secrets | {unquote(each) for each in secrets}, key=len, reverse=True)


def secrets_of_environment() -> list[str]:
    """Credentials for object stores in the environment; a server may repeat them in an answer."""
    return [
        value
        for name, value in os.environ.items()
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))
        and re.search("SECRET|TOKEN|PASSWORD|KEY|SAS", name)
        and len(value) >= MIN_SECRET_CHARACTERS
    ]


def without_secrets(uri: str) -> str:
    """A URI without user, password and query, to show to users.

    Example:
        >>> without_secrets("https://me:word@host/photos.zip?sig=abc")
        'https://host/photos.zip'
    """
    if not scheme_of(uri):
        return uri
    head, _, rest = uri.partition("://")
    # An unescaped `/`, `?` or `#` in a password makes the address invalid, but still a secret.
    if re.match(r"[^/?#@\[]*:(?!\d*([/?#]|$))", rest) and "@" in rest:
        rest = rest[rest.rindex("@") + 1 :]
    rest = rest.partition("#")[0].partition("?")[0] if head.lower() in WEB_SCHEMES else rest
    server, slash, path = rest.partition("/")
    return f"{head}://{server.rpartition('@')[2]}{slash}{path}"


def redacted(text: str, secrets: list[str]) -> str:
    """A text without these secrets, and without those of the addresses in it."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return re.sub(r"https?://\S+", lambda found: without_secrets(found[0]), text)
