"""The servers of a soak, on loopback: of images, of web hooks, of mail. Each can be at fault.

A fault is one of those in `soak_schedule.py`, or None. Here: answering, or not; what was received.
Not here: when they are at fault.
"""

import asyncio
import contextlib
import email
import email.policy
import hashlib
import html
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller

SLOW_SECONDS = 5.0

# Who receives what was accepted: recipient, title, body.
OnMessage = Callable[[str, str, str], None]


class _Server(ThreadingHTTPServer):
    """With a fault that its handlers look at; a request that hangs ends with it."""

    request_queue_size = 200

    def handle_error(self, *_: object) -> None:
        """Clients that are killed, or lose patience, are what a soak is about."""


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def stumbles(self, fault_of: Callable[[], str | None]) -> bool:
        """Do what the fault of the moment wants; whether that was all."""
        match fault_of():
            case "hang":
                while fault_of() == "hang":
                    time.sleep(0.2)
                self.close_connection = True
                return True
            case "slow":
                time.sleep(SLOW_SECONDS)
            case "503":
                self.answer(503)
                return True
            case "404":
                self.answer(404)
                return True
        return False

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class ImageServer:
    """Serves a folder of folders, each of which has a fault of its own."""

    def __init__(self, root: Path) -> None:
        self.faults: dict[str, str | None] = {}
        world = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                name = self.path.strip("/").partition("/")[0]
                if self.stumbles(lambda: world.faults.get(name)):
                    return
                try:
                    content = (root / self.path.partition("?")[0].strip("/")).read_bytes()
                except OSError:
                    self.answer(404)
                    return
                digest = hashlib.blake2b(content, digest_size=8).hexdigest()
                self.answer(200, content, ETag=f'"{digest}"')

            do_HEAD = do_GET  # noqa: N815

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.faults.clear()
        self._server.shutdown()
        self._server.server_close()


class Hook:
    """A web hook on a port of its own."""

    def __init__(self, name: str, received: OnMessage) -> None:
        self.name, self.fault = name, None
        self._received = received
        self._open(0)
        self.port = self._server.server_port

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.port}/{self.name}"

    def set_fault(self, fault: str | None) -> None:
        if self.fault == "closed" and fault != "closed":
            self._open(self.port)
        was, self.fault = self.fault, fault
        if fault == "closed" and was != "closed":
            self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _open(self, port: int) -> None:
        hook = self

        class Handler(_Handler):
            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.stumbles(lambda: hook.fault):
                    return
                # Whoever does not wait for the answer of a slow service has told it all the same.
                hook._received(f"hook {hook.name}", told["title"], told["message"])
                self.answer(200)

        self._server = _Server(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()


class MailServer:
    """An SMTP server that rejects one address for good."""

    REJECTED = "rejected@example.com"

    def __init__(self, received: OnMessage) -> None:
        self.fault: str | None = None
        self._received = received
        with socket.socket() as probe:  # aiosmtpd cannot let the system choose
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._open()

    def url(self, *addresses: str) -> str:
        to = ",".join(addresses)
        return f"mailto://127.0.0.1:{self.port}?from=visdiv@example.com&to={to}"

    def set_fault(self, fault: str | None) -> None:
        if self.fault == "closed" and fault != "closed":
            self._open()
        was, self.fault = self.fault, fault
        if fault == "closed" and was != "closed":
            self.close()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._controller.stop()

    def _open(self) -> None:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self._controller.start()

    # What aiosmtpd calls.

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        while self.fault == "hang":
            await asyncio.sleep(0.2)
        session.host_name = hostname
        return responses

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address == self.REJECTED:
            return "550 there is nobody of this name"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.fault == "503":
            return "451 not now"
        if self.fault == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        for address in envelope.rcpt_tos:
            self._received(f"mail {address}", str(message["subject"]), _text_of(message))
        return "250 accepted"


def _text_of(message: Any) -> str:
    """A mail as plain text."""
    body = message.get_body(("plain", "html"))
    text: str = body.get_content()
    if body.get_content_type() == "text/html":
        text = re.sub(r"[\r\n]+", "", text)
        text = re.sub(r"<br\s*/?>|</p>", "\n", text, flags=re.IGNORECASE)
        text = html.unescape(re.sub(r"<[^>]+>", "", text))
    return text.replace("\xa0", " ")
