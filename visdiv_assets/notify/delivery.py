"""Delivering each alert once to every target.

Here: which target is due, back-off, and recording what a service accepted. Apprise sends the
messages. An alert is recorded as delivered only after the service accepted it. So no alert is
lost, but if the process dies in between, one may be sent twice.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote

from visdiv_assets.errors import VisdivError
from visdiv_assets.notify.messages import LONGEST, Message, compose
from visdiv_assets.settings.model import AlertSettings
from visdiv_assets.settings.secrets import redacted, remember
from visdiv_assets.warehouse.warehouse import Warehouse

FIRST_RETRY = timedelta(seconds=15)
LONGEST_RETRY = timedelta(hours=1)

# Longer than any of our titles.
TITLE = 400

# What Apprise says of a target is shown without the parts of its URL that are at least so long.
SHORTEST_PART = 4


class Target:
    """One recipient of alerts, given by an Apprise URL.

    Args:
        url: such as `slack://…`, `mailto://…`, `json://host/path`; it may contain secrets.

    Raises:
        VisdivError: Apprise does not recognise the URL. The message does not contain the URL.
    """

    def __init__(self, url: str) -> None:
        import apprise

        # The URL may contain secrets, so the store identifies a target by a hash.
        self.id = hashlib.sha256(url.encode()).hexdigest()[:16]
        remember([url, url.partition(":")[2]])
        self._parts = [part for part in parts_of(url) if len(part) >= SHORTEST_PART]
        self._apprise = apprise.Apprise()
        with _log_without(self._parts):
            recognised = self._apprise.add(url)
        if not recognised:
            remember(part for part in self._parts if not _is_word(part))
            raise VisdivError(
                f"Apprise does not recognise the alert URL ({self.id[:4]}) {_beginning(url)}"
            )
        remember(secret_parts(url, list(self._apprise)))
        service = self._apprise[0]
        # Not its host: for many services, that is the key.
        self.label = f"{service.service_name} ({self.id[:4]})"
        # Services without titles get the title as the first line of the text.
        title = 0 if service.title_maxlen > 0 else TITLE
        self.longest = max(service.body_maxlen - title, 0) or LONGEST

    def send(self, message: Message) -> str | None:
        """Send a message; returns None if the service accepted it, else what went wrong."""
        import apprise

        logs = apprise.LogCapture(level=logging.WARNING, fmt="%(message)s")  # type: ignore[no-untyped-call]
        with _log_without(self._parts), logs as log:
            accepted = bool(self._apprise.notify(title=message.title, body=message.body))
            said = " ".join(log.getvalue().split())
        return None if accepted else (said or "the service did not accept the message")[:300]


def parts_of(url: str) -> list[str]:
    """What an Apprise URL consists of: every text that may be a key, without names of parameters.

    Example:
        >>> parts_of("slack://TokenA/TokenB/#data?footer=no")
        ['TokenA', 'TokenB', 'data', 'no']
    """
    parts = []
    for part in re.split(r"[/@:?&#,;\s]+", url.partition(":")[2]):
        value = part.partition("=")[2] or part
        parts += [value, *re.split(r"[/@:?&#,;=\s]+", unquote(value))]
    return list(dict.fromkeys(filter(None, parts)))


def secret_parts(url: str, services: Sequence[Any]) -> set[str]:
    """The parts of an Apprise URL that must not be shown anywhere.

    Apprise knows which they are, and hides them in `url(privacy=True)`. It does not know of headers
    and parameters of webhooks, nor what a path means to its server.
    """
    written, shown = set(parts_of(url)), set[str]()
    rendered = set[str]()
    for service in services:
        rendered.update(parts_of(service.url(privacy=False)))
        shown.update(parts_of(service.url(privacy=True)))
    hidden = (rendered - shown) | {part for part in written - shown if not _is_word(part)}
    extra = {value for name, value in parse_qsl(url.partition("?")[2]) if name[:1] in " +-:"}
    hidden.update(*map(_private, services))
    return hidden | extra | {part for part in written | rendered if _looks_random(part)}


def _private(service: Any) -> set[str]:
    """The values that a service declares to be private."""
    private: set[str] = set()
    for name, about in service.template_tokens.items():
        value = getattr(service, about.get("map_to") or name, None)
        if about.get("private") and isinstance(value, str):
            private.add(value)
    return private


@contextmanager
def _log_without(parts: Sequence[str]) -> Iterator[None]:
    """While it lasts, Apprise's log holds none of these texts, whatever their lengths."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage(), parts), ()
        return True

    log = logging.getLogger("apprise")
    log.addFilter(hide)
    try:
        yield
    finally:
        log.removeFilter(hide)


def _is_word(part: str) -> bool:
    return part.isalpha() and part.islower()


def _looks_random(part: str) -> bool:
    return bool(re.fullmatch(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9_]{10,}", part))


def _beginning(url: str) -> str:
    """How an invalid URL begins, as far as that is surely no secret."""
    from apprise.plugins import N_MGR

    scheme, _, rest = url.partition(":")
    known = scheme.lower() in N_MGR.schemas()  # type: ignore[no-untyped-call]
    if known or (rest.startswith("//") and re.fullmatch("[A-Za-z]{1,20}", scheme)):
        return f"that starts with {scheme!r}"
    return "that does not start with a service, as slack:// does"


def targets_of(settings: AlertSettings) -> tuple[list[Target], list[str]]:
    """The targets in the settings, and an error message for each invalid one."""
    targets, problems = [], []
    for url in settings.urls:
        try:
            targets.append(Target(settings.resolved(url)))
        except VisdivError as error:
            problems.append(str(error))
    return targets, problems


@dataclass(frozen=True)
class Delivered:
    """The result of a round of deliveries for one target."""

    target: str
    n_alerts: int
    error: str | None


def deliver_due(
    warehouse: Warehouse,
    targets: Sequence[Target],
    *,
    dagster_url: str,
    now: datetime | None = None,
) -> list[Delivered]:
    """Send each target its due alerts as one message, and record what was accepted.

    No database connection is open while a message is being sent.
    """
    now = now or datetime.now(UTC)
    report: list[Delivered] = []
    due_by_target = warehouse.take_due_alerts([target.id for target in targets], now)
    for target in targets:
        due = due_by_target[target.id]
        if not due:
            continue
        error = target.send(compose(due, dagster_url, target.longest))
        alert_ids = [entry.alert.alert_id for entry in due]
        if error is None:
            warehouse.mark_delivered(alert_ids, target.id, datetime.now(UTC))
        else:
            attempts = max(entry.attempts for entry in due)
            warehouse.mark_failed(alert_ids, target.id, error, now + retry_delay(attempts))
        report.append(Delivered(target.label, len(due), error))
    return report


def retry_delay(attempts: int) -> timedelta:
    """How long to wait after a number of earlier attempts: 15 s, doubling up to an hour.

    Example:
        >>> [retry_delay(attempts).total_seconds() for attempts in (0, 1, 2, 20)]
        [15.0, 30.0, 60.0, 3600.0]
    """
    return min(FIRST_RETRY * (1 << min(attempts, 16)), LONGEST_RETRY)
