"""Requests to a bucket: connecting, retries, and errors without secrets.

Not here: which objects are asked for (`places.py` for images, `store/bucket.py` for the store).
"""

import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import redacted, secrets_in, without_secrets
from visdiv_assets.sources import web
from visdiv_assets.sources.reaching import Contact, NoAnswerError, brief, check_time

T = TypeVar("T")

ATTEMPTS = 6
RETRY_SECONDS = 60  # no further attempt is begun after that time
REQUEST_SECONDS = 120  # for one request, content included


class BucketClient:
    """A prefix in a bucket, through obstore. Threads may share it.

    Attributes:
        uri: its address as shown to users, without secrets.
        store: what obstore's functions take.
    """

    def __init__(
        self,
        uri: str,
        options: Mapping[str, str],
        patience: float | None = None,
        longest: float = REQUEST_SECONDS,
    ) -> None:
        """Connect; nothing is asked yet.

        Args:
            uri: s3://, gs:// or az://, bucket and prefix.
            options: as obstore has them; credentials come from here or from the environment.
            patience: seconds for a request with all its attempts; None is for work that may wait.
            longest: seconds for one request, content included.

        Raises:
            VisdivError: there is no bucket in the address, or the options are not valid.
        """
        from obstore.store import from_url

        if not urlsplit(uri).netloc:
            shown = without_secrets(uri)
            raise VisdivError(f"{shown} names no bucket; write it as s3://bucket/prefix/")
        self._secrets = secrets_in(uri, options)
        address = without_secrets(uri).rstrip("/")
        self.uri = redacted(address)
        self._contact = Contact()
        most = float("inf") if patience is None else patience
        self._silent = min(web.SILENT_SECONDS, most)
        client: dict[str, Any] = {
            "timeout": timedelta(seconds=min(longest, most)),
            "connect_timeout": timedelta(seconds=min(web.CONNECT_SECONDS, most)),
            "read_timeout": timedelta(seconds=self._silent),
        }
        endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
        if endpoint.startswith("http://"):
            client["allow_http"] = True
        try:
            connect = cast(Any, from_url)  # its types allow the options of one kind of store only
            self.store = connect(
                address,
                client_options=client,
                retry_config={
                    "max_retries": ATTEMPTS,
                    "retry_timeout": timedelta(seconds=min(RETRY_SECONDS, most)),
                },
                **options,
            )
        except Exception as error:  # noqa: BLE001  obstore has errors of its own; TypeError, too
            raise VisdivError(f"cannot open {self.uri}: {self._error(error)}") from None

    def attempt(self, act: Callable[[], T]) -> T:
        """What a request returns.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: it failed, after retries; a NoAnswerError if another attempt may succeed.
            Unreachable: several requests in a row were not answered.
        """
        check_time()
        try:
            result = act()
        except Exception as error:  # noqa: BLE001  obstore has errors of its own; ValueError, too
            told = self._error(error)
            self._contact.note(self.uri, told)
            raise told from None
        self._contact.made()
        return result

    def _error(self, error: Exception) -> OSError:
        whole = str(error)
        first_line, _, details = whole.partition("\n\n")
        text = brief(first_line, self._secrets)
        if reason := _reason(first_line):
            return OSError(reason)
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(text)
        if (status := STATUS.search(text)) and is_passing_status(int(status[1])):
            return NoAnswerError(f"HTTP status {status[1]}")
        if HALF in text:
            return NoAnswerError("the server did not send all of its answer")
        kind = KIND.search(details)
        if kind and kind[1] in WHY_NO_ANSWER and not NO_TLS.search(details):
            return NoAnswerError(WHY_NO_ANSWER[kind[1]].format(seconds=self._silent))
        return OSError(text)


def _reason(text: str) -> str | None:
    """What a refusal means, if it is one of those that people can do something about."""
    if NO_CREDENTIALS.search(text):
        return (
            "there are no credentials; set access_key_id and secret_access_key in options, or in "
            "the environment"
        )
    code, status = CODE.search(text), STATUS.search(text)
    return REASONS.get(code[1] if code else "") or REASONS.get(status[1] if status else "")


# What servers refuse, by code; some answer with a status alone.
REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "ContainerNotFound": "there is no such container",
    "InvalidAccessKeyId": "the credentials are not accepted",
    "SignatureDoesNotMatch": "the credentials are not accepted",
    "401": "the credentials are not accepted",
    "AccessDenied": "access is denied",
    "403": "access is denied",
}
CODE = re.compile(r"<Code>(\w+)</Code>")
# Where machines in a cloud get credentials from, which is asked when there are no others.
NO_CREDENTIALS = re.compile(r"Error performing [A-Z]+ http://(169\.254\.169\.254|metadata\.google)")

# What obstore says about requests that failed.
STATUS = re.compile(r"status code: (\d{3})")
HALF = "request or response body error"
KIND = re.compile(r"HttpError\s*\{\s*kind: (\w+)")
NO_TLS = re.compile(r"InvalidMessage|InvalidCertificate")
WHY_NO_ANSWER = {
    "Timeout": "the server does not answer ({seconds:g} s)",
    "Connect": "cannot connect to the server",
    "Interrupted": "the server closed the connection midway",
}


def is_passing_status(status: int) -> bool:
    """Whether a server that answers with this HTTP status may answer otherwise later."""
    return status == 429 or status >= 500
