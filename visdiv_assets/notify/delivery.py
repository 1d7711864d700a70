"""Delivering each alert once to every recipient, in the order in which things happened.

Here: who the recipients are, sending in threads, and recording what came of it. Apprise sends the
messages. The right to send is recorded before, and what came of it after. So no alert is lost, no
failure to record floods anybody, and only if the process dies in between, one may be sent twice.
"""

import copy
import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from visdiv_assets.errors import VisdivError
from visdiv_assets.notify.messages import LONGEST, Message, compose
from visdiv_assets.settings.model import AlertSettings
from visdiv_assets.settings.secrets import redacted, remember
from visdiv_assets.warehouse.state.database import StateFile
from visdiv_assets.warehouse.state.outbox import Claim, address, claim, settle

logger = logging.getLogger(__name__)

# How long a round waits for services; what takes longer goes on by itself.
ROUND_SECONDS = 10.0

# Apprise gives a service 4 seconds, and would send again what one that takes 5 has got.
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
LONGEST_READ_SECONDS = 240.0

# A service that has kept a thread for so long, byte by byte, is tried anew in another.
HOPELESS_SECONDS = 900.0

# Longer than any of our titles.
TITLE = 400

# What Apprise says of a target is shown without the parts of its URL that are at least so long.
SHORTEST_PART = 4


class Target:
    """What an Apprise URL names: one recipient of alerts, or several.

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
        self._url = url
        self._parts = [part for part in parts_of(url) if len(part) >= SHORTEST_PART]
        # Without a limit of Apprise's own, which would send in threads that all share.
        self._apprise = apprise.Apprise(asset=apprise.AppriseAsset(service_timeout=0))
        with _log_without(self._parts):
            recognised = self._apprise.add(url)
        if not recognised:
            remember(part for part in self._parts if not _is_word(part))
            raise VisdivError(
                f"Apprise does not recognise the alert URL ({self.id[:4]}) {_beginning(url)}"
            )
        remember(secret_parts(url, list(self._apprise)))
        # Not its host: for many services, that is the key.
        self.label = f"{self._service.service_name} ({self.id[:4]})"
        # Services without titles get the title as the first line of the text.
        title = 0 if self._service.title_maxlen > 0 else TITLE
        self.longest = max(self._service.body_maxlen - title, 0) or LONGEST
        self._waits = {"cto", "rto"} - {
            name.lower() for name, _ in parse_qsl(url.partition("?")[2])
        }
        if "cto" in self._waits:
            for service in self._apprise:
                service.socket_connect_timeout = max(
                    service.socket_connect_timeout, CONNECT_SECONDS
                )

    @property
    def _service(self) -> Any:
        return self._apprise[0]

    def split(self) -> "list[Target]":
        """The recipients, one by one, so that each is told once whatever becomes of the others.

        A text may hold several URLs, and a URL several addresses.
        """
        from apprise.utils.parse import parse_urls

        if len(self._apprise) > 1:
            with _log_without(self._parts):
                urls = dict.fromkeys(parse_urls(self._url))  # type: ignore[no-untyped-call]
            return [each for url in urls for each in Target(url).split()]
        addresses = _addresses(self._service)
        if len(addresses) < 2:
            return [self]
        return [self._only(attribute, address) for attribute, address in addresses]

    def _only(self, attribute: str, address: Any) -> "Target":
        """The same with one of its addresses."""
        import apprise

        service = copy.copy(self._service)
        for each in ("cc", "bcc"):
            if isinstance(getattr(service, each, None), set):
                setattr(service, each, set())
        setattr(service, attribute, [address])
        only = copy.copy(self)
        # As Apprise would write it alone: whoever else is added to the URL, it stays the same.
        only.id = hashlib.sha256(service.url(privacy=False).encode()).hexdigest()[:16]
        only.label = f"{service.service_name} ({only.id[:4]})"
        only._apprise = apprise.Apprise([service])
        return only

    def send(self, message: Message, unanswered: int = 0) -> str | None:
        """Send a message; returns None if the service accepted it, else what went wrong.

        Args:
            message: what to send.
            unanswered: how often in a row the service has not answered; it gets longer then.
        """
        import apprise

        if "rto" in self._waits:
            for service in self._apprise:
                service.socket_read_timeout = self.patience(unanswered)
        with _log_without(self._parts), _said_here() as said:
            # As plain text: else a mail would be HTML, and a `<` in a reason part of its code.
            accepted = bool(
                self._apprise.notify(
                    title=message.title, body=message.body, body_format=apprise.NotifyFormat.TEXT
                )
            )
        text = " ".join(" ".join(said).split())
        return None if accepted else (text or "the service did not accept the message")[:300]

    def patience(self, unanswered: int) -> float:
        """Seconds after which a service that took a message counts as not answering."""
        if "rto" not in self._waits:
            return float(self._service.socket_read_timeout)
        return min(READ_SECONDS * (1 << min(unanswered, 8)), LONGEST_READ_SECONDS)


def _addresses(service: Any) -> list[tuple[str, Any]]:
    """The addresses of a service, as far as it keeps them in one list, with the list's name."""
    found: list[tuple[str, Any]] = []
    for attribute in ("targets", "channels"):
        kept = getattr(service, attribute, None)
        if isinstance(kept, list | tuple) and len(service) == len(kept):
            found = [(attribute, each) for each in kept]
            break
    if found and found[0][0] == "targets":  # of mails
        copies = {*(getattr(service, "cc", None) or ()), *(getattr(service, "bcc", None) or ())}
        found += [("targets", (False, each)) for each in sorted(copies)]
    return found


@contextmanager
def _said_here() -> Iterator[list[str]]:
    """What Apprise says in this thread while it lasts; others may send at the same time."""
    said: list[str] = []
    here = threading.get_ident()

    def note(record: logging.LogRecord) -> bool:
        if record.thread == here and record.levelno >= logging.WARNING:
            said.append(record.getMessage())
        return False  # it is noted, and goes nowhere

    listener, log = logging.Handler(), logging.getLogger("apprise")
    listener.addFilter(note)
    log.addHandler(listener)
    try:
        yield said
    finally:
        log.removeHandler(listener)


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
    """The recipients in the settings, and an error message for each invalid URL."""
    targets: dict[str, Target] = {}
    problems = []
    for url in settings.urls:
        try:
            for target in Target(settings.resolved(url)).split():
                targets.setdefault(target.id, target)
        except VisdivError as error:
            problems.append(str(error))
    return list(targets.values()), problems


@dataclass(frozen=True)
class Delivered:
    """The result of a round of deliveries for one recipient.

    Attributes:
        target: its label.
        n_alerts: how many alerts were sent to it.
        error: what went wrong; None if they were accepted.
    """

    target: str
    n_alerts: int
    error: str | None


STILL_SENDING = "still sending"


class Deliveries:
    """Sends in threads, one for each recipient, so that one that hangs holds up nobody else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sending: dict[tuple[Path, str], tuple[threading.Thread, float]] = {}
        # What a service has answered, but could not be recorded yet.
        self._answers: dict[tuple[Path, str], tuple[Claim, str | None, bool]] = {}

    def deliver(
        self,
        state: StateFile,
        targets: Sequence[Target],
        *,
        dagster_url: str,
        now: datetime | None = None,
        wait_seconds: float = ROUND_SECONDS,
    ) -> list[Delivered]:
        """Send each recipient everything due as one message, and record what was accepted.

        Args:
            state: holds the alerts.
            targets: the recipients.
            dagster_url: address of Dagster's UI, for links.
            now: aware datetime; the current time when None.
            wait_seconds: how long to wait for services. What takes longer is told as such, goes on,
                and is recorded when it ends.

        Raises:
            VisdivError: the state cannot be used; nothing was sent then.
        """
        address(state, {each.id: each.label for each in targets}, now or datetime.now(UTC))
        begun: list[tuple[Target, Claim, threading.Thread, list[Delivered]]] = []
        report: list[Delivered] = []
        for target in targets:
            key = (state.path, target.id)
            try:
                if not self._may_begin(state, key, now):
                    report.append(Delivered(target.label, 0, STILL_SENDING))
                    continue
                claimed = claim(state, target.id, now or datetime.now(UTC))
            except VisdivError as error:  # the disk is full, perhaps: nothing is sent
                report.append(Delivered(target.label, 0, str(error)))
                continue
            if claimed is None:
                continue
            results: list[Delivered] = []
            arguments = (state, target, claimed, dagster_url, now, results)
            thread = threading.Thread(
                target=self._send, args=arguments, name=f"alerts {target.id}", daemon=True
            )
            with self._lock:
                self._sending[key] = (thread, time.monotonic())
            thread.start()
            begun.append((target, claimed, thread, results))
        deadline = time.monotonic() + wait_seconds
        for target, claimed, thread, results in begun:
            thread.join(max(deadline - time.monotonic(), 0.0))
            report += results or [Delivered(target.label, len(claimed.alerts), STILL_SENDING)]
        return report

    def _may_begin(self, state: StateFile, key: tuple[Path, str], now: datetime | None) -> bool:
        """Whether no thread is sending to a recipient, and its last answer is recorded."""
        with self._lock:
            thread, begun = self._sending.get(key, (None, 0.0))
            if thread and thread.is_alive() and time.monotonic() - begun < HOPELESS_SECONDS:
                return False
            answer = self._answers.get(key)
        if answer is not None:
            self._record(state, key, *answer, now)
        return True

    def _send(
        self,
        state: StateFile,
        target: Target,
        claimed: Claim,
        dagster_url: str,
        now: datetime | None,
        results: list[Delivered],
    ) -> None:
        begun = time.monotonic()
        try:
            message = compose(claimed.alerts, dagster_url, target.longest)
            error = target.send(message, claimed.unanswered)
        except Exception as fault:  # noqa: BLE001  of a hundred services, some have faults
            error = redacted(f"{type(fault).__name__}: {fault}")[:300]
        answered = error is None or (time.monotonic() - begun < target.patience(claimed.unanswered))
        key = (state.path, target.id)
        with self._lock:
            self._answers[key] = (claimed, error, answered)
        try:
            self._record(state, key, claimed, error, answered, now)
        except VisdivError as fault:  # the next round records it before anything else
            logger.warning("%s: what came of an alert cannot be recorded: %s", target.label, fault)
        results.append(Delivered(target.label, len(claimed.alerts), error))

    def _record(
        self,
        state: StateFile,
        key: tuple[Path, str],
        claimed: Claim,
        error: str | None,
        answered: bool,
        now: datetime | None,
    ) -> None:
        settle(state, key[1], claimed, error, now or datetime.now(UTC), answered=answered)
        with self._lock:
            self._answers.pop(key, None)


# One for each process, so that what is being sent goes on from round to round.
deliver_due = Deliveries().deliver
