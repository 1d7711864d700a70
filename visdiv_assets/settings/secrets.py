"""Keeping secrets out of everything that is shown, logged or recorded.

Here: which texts are secret, and texts without them. Everything that prints, logs or records what
came from outside goes through `redacted`. Not here: where addresses lead, what settings mean.

Two things work together. Addresses are shown without login and query, whatever they are. And
secrets that were seen once, in the settings, an address or the environment, are remembered for as
long as the process lives, because a server or a library may repeat them in any form.
"""

import base64
import functools
import html
import logging
import os
import re
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"

BUCKET_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "abfs", "abfss"})
WEB_SCHEMES = frozenset({"http", "https"})

# Shorter texts are not searched for: they appear in any text by chance. In addresses, logins and
# queries are left out whatever their length.
MIN_SECRET_CHARACTERS = 6

# Environment variables with such names hold secrets, unless they name a file that holds one.
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|ACCOUNT_?KEY|CREDENTIAL"
    r"|SIGNATURE|WEBHOOK|ALERT_URL|(^|_)(KEY|SAS|PWD|PAT|AUTH)(_|$)",
    re.IGNORECASE,
)
_NAMES_A_PLACE = re.compile(
    r"(_FILE|_PATH|_DIR|_SOCK|_URI|_ENDPOINT|CREDENTIALS)$|^(OLD)?PWD$", re.IGNORECASE
)
_PROXY = re.compile(r"(https?|all|ftp|ws|wss)_proxy", re.IGNORECASE)

# Parameters that prove who asks, in signed addresses of object stores and elsewhere.
_SIGNING = re.compile(
    r"x-(amz|goog|oss|ms|cos)-.*|.*(signature|token|secret|passw|api[-_]?key|credential|auth).*"
    r"|sig|sign|key|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|ossaccesskeyid"
    r"|s[etprvi]|spr|sip|ses|sdd|srt|ss|sks|ske|skt|skv|skoid|sktid|hash|hmac|jwt|sas",
    re.IGNORECASE,
)

# Words, not secrets, as values of options.
_PUBLIC_VALUES = frozenset({"true", "false"})
_PUBLIC_OPTION = re.compile(
    r"(aws_|azure_|google_)?(endpoint(_url)?|(default_)?region|bucket(_name)?|container(_name)?"
    r"|(storage_)?account(_name)?)",
    re.IGNORECASE,
)
_NOTHING: Mapping[str, str] = MappingProxyType({})

# Texts may be hostile, so every repetition has an end: else one long word would take minutes.
# `://` after any word, or a single slash after one that can only be meant as an address.
_SCHEME = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,40})(://|(?<=http):/|(?<=https):/|(?<=s3):/|(?<=s3a):/|(?<=gs):/|"
    r"(?<=az):/|(?<=abfs):/|(?<=abfss):/|(?<=ftp):/|(?<=sftp):/)"
)
_ADDRESS = re.compile(_SCHEME.pattern + r"\S*")
_CLOSING = "\"'`)]}>,;:."

# What libraries say about requests: the path and the headers, too, may hold a key.
_REQUEST = re.compile(r"\b(GET|HEAD|POST|PUT|PATCH|DELETE|CONNECT|OPTIONS) (/\S*)(?= HTTP/\d)")
_WITH_URL = re.compile(r"(with url: )(/\S*)")
_HEADER = re.compile(r"(authorization\W{1,5})((basic|bearer|token|genie\w*) )?[^\s'\"]+", re.I)
_PARAMETER = re.compile(
    r"(?<![A-Za-z0-9])((?:x-(?:amz|goog|oss)-[a-z-]{1,100}|sig|signature|[a-z_-]{0,100}(?:token|secret|passw"
    r"(?:or)?d|api_?key)|awsaccesskeyid|googleaccessid)=)[^\s&'\"<>]+",
    re.IGNORECASE,
)

_known: set[str] = set()
_lock = threading.Lock()


def without_secrets(uri: str) -> str:
    """A URI without user, password and query, to show to users; a path as it is.

    Example:
        >>> without_secrets("https://me:word@host/photos.zip?sig=abc")
        'https://host/photos.zip'
    """
    match = _SCHEME.match(uri)
    if not match:
        return uri
    rest = uri[match.end() :]
    # An unescaped `/`, `?` or `#` in a password makes the address invalid, but still a secret.
    if re.match(r"[^/?#@\[]*:(?!\d*([/?#]|$))", rest) and "@" in rest:
        rest = rest[rest.rindex("@") + 1 :]
    if match[1].lower() in WEB_SCHEMES:
        rest = rest.partition("#")[0].partition("?")[0]
    server, slash, path = rest.partition("/")
    return f"{match[0]}{server.rpartition('@')[2]}{slash}{path}"


def without_signature(query: str) -> str:
    """The part of a query that says what is asked for, without what proves who asks.

    Example:
        >>> without_signature("id=7&X-Amz-Signature=abc&X-Amz-Expires=60")
        'id=7'
    """
    kept = [each for each in query.split("&") if not _SIGNING.fullmatch(each.partition("=")[0])]
    return "&".join(filter(None, kept))


def secrets_in(uri: str, options: Mapping[str, str] = _NOTHING) -> list[str]:
    """Texts that must never be shown: user, password and query of a URI, values of options.

    The longest come first. Forms in which a server or a library may repeat them are not included;
    `redacted` knows those.
    """
    values = [value for name, value in options.items() if not _PUBLIC_OPTION.fullmatch(name)]
    found = [each for each in values if each.lower() not in _PUBLIC_VALUES]
    for each in (uri, *options.values()):
        found += _login(each)
        query = each.partition("#")[0].partition("?")[2]
        if _SCHEME.match(each) and "=" in query:
            found += [query, *(value for name, value in _pairs(query) if _SIGNING.fullmatch(name))]
    secrets = {each for each in found if each}
    return sorted(secrets | {unquote(each) for each in secrets}, key=len, reverse=True)


def _pairs(query: str) -> list[tuple[str, str]]:
    return [
        *parse_qsl(query, keep_blank_values=True),
        *((name, value) for name, _, value in (each.partition("=") for each in query.split("&"))),
    ]


def _login(uri: str) -> list[str]:
    match = _SCHEME.match(uri)
    if not match:
        return []
    rest = uri[match.end() :]
    # The password of an invalid address may contain what ends a server's name.
    invalid = re.match(r"[^/?#@\[]*:(?!\d*([/?#]|$))", rest)
    server = rest if invalid else re.split(r"[/?#]", rest, maxsplit=1)[0]
    login = server.rpartition("@")[0]
    user, _, password = login.partition(":")
    if not password:
        return [user]
    both = f"{unquote(user)}:{unquote(password)}".encode("utf-8", "surrogateescape")
    return [login, user, password, base64.b64encode(both).decode()]


def secrets_of_environment() -> list[str]:
    """Credentials in the environment, and logins of proxies; a server may repeat them."""
    found = []
    for name, value in os.environ.items():
        if _is_proxy(name):
            found += _login(value if "://" in value else f"http://{value}")
        elif _holds_secret(name):
            address = value.partition("://")[2]
            found += [value, address, address.partition("/")[2], *secrets_in(value)]
    return found


def holds_secret(name: str) -> bool:
    """Whether an environment variable's name says that its value is a secret.

    Example:
        >>> [holds_secret(name) for name in ("SLACK_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE", "PWD")]
        [True, False, False]
    """
    return bool(_SECRET_NAME.search(name)) and not _NAMES_A_PLACE.search(name)


_holds_secret = functools.lru_cache(4096)(holds_secret)
_is_proxy = functools.lru_cache(4096)(lambda name: bool(_PROXY.fullmatch(name)))


def remember(secrets: Iterable[str]) -> None:
    """Keep these texts out of everything from now on, the log of this process included."""
    with _lock:
        _known.update(each for each in secrets if len(each) >= MIN_SECRET_CHARACTERS)
        guard_logs()


def redacted(text: str, also: Iterable[str] = ()) -> str:
    """A text to show, log or record: without known secrets, and without those of its addresses.

    Args:
        text: what may hold secrets, in whatever form.
        also: further secrets, of any length.

    Example:
        >>> redacted("403 for url 'https://me:word@host/a.zip?sig=abc'")
        "403 for url 'https://host/a.zip'"
    """
    # In this order: a secret within an address may be recognised only while that is whole.
    text = _ADDRESS.sub(_without, _all_hidden(text, also))
    text = _REQUEST.sub(rf"\1 {HIDDEN}", text)
    text = _WITH_URL.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)


def redacted_traceback(error: BaseException) -> str | None:
    """The traceback of an error and its causes, redacted; None if it holds no secrets anyway."""
    # The lines of code in a traceback may look as if they had secrets; only messages can have.
    if all(redacted(each) == each for each in _messages(error, set())):
        return None
    return redacted("".join(traceback.format_exception(error)))


def _messages(error: BaseException | None, seen: set[int]) -> Iterator[str]:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield "".join(traceback.format_exception_only(error))
    yield from _messages(error.__cause__, seen)
    if not error.__suppress_context__:
        yield from _messages(error.__context__, seen)
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _messages(each, seen)


def _all_hidden(text: str, also: Iterable[str]) -> str:
    long = {each for each in secrets_of_environment() if len(each) >= MIN_SECRET_CHARACTERS}
    with _lock:
        long |= _known
    # Two patterns, so that the one of known secrets is compiled once.
    for pattern in (_pattern(frozenset(long)), _pattern(frozenset(filter(None, also)))):
        if pattern is not None:
            text = pattern.sub(HIDDEN, text)
    return text


@functools.lru_cache(64)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    forms = {form for each in secrets for form in _forms(each)} - {""}
    if not forms:
        return None
    longest_first = sorted(forms, key=lambda each: (-len(each), each))
    return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)


def _forms(secret: str) -> set[str]:
    """A secret as servers and libraries repeat it: with and without escapes of various kinds."""
    plain = {secret, unquote(secret), unquote_plus(secret)}
    forms = set(plain)
    for each in plain:
        octets = each.encode("utf-8", "surrogateescape")
        forms |= {quote(octets, safe=""), quote(octets), quote_plus(octets)}
        forms |= {repr(each)[1:-1], html.escape(each), " ".join(each.split())}
    return {each for each in forms if len(each) >= min(len(secret), MIN_SECRET_CHARACTERS)}


def _without(found: re.Match[str]) -> str:
    end = len(found[0].rstrip(_CLOSING))
    return without_secrets(found[0][:end]) + found[0][end:]


class _Redacting:
    """Makes log records whose messages and tracebacks hold no secrets.

    A filter would have to be on every logger or on every handler, also on those added later.
    """

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._factory(*args, **kwargs)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  logging itself reports arguments that do not fit
            return record
        clean = redacted(message)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[1]:
            told = redacted_traceback(record.exc_info[1])
            if told is not None:
                record.exc_text, record.exc_info = told.rstrip("\n"), None
        return record


def guard_logs() -> None:
    """From now on, no log record of this process, of whatever logger and level, holds secrets."""
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, _Redacting):
        logging.setLogRecordFactory(_Redacting(factory))
