"""Real services on loopback that alerts are sent to: a webhook and an SMTP server."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler


class Webhook(ThreadingHTTPServer):
    """Keeps the JSON bodies that it accepts; refuses all while `down`."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.received: list[dict[str, Any]] = []
        self.refused = 0
        self.down = False

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server_port}/alerts"

    @property
    def titles(self) -> list[str]:
        return [body["title"] for body in self.received]


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.down:
            self.server.refused += 1
            self.send_response(503)
        else:
            self.server.received.append(body)
            self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Inbox(MessageHandler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Any] = []

    def handle_message(self, message: Any) -> None:
        self.messages.append(message)


@contextmanager
def smtp_server() -> Iterator[tuple[str, list[Any]]]:
    """An Apprise URL of a mail server, and the messages it gets."""
    inbox = _Inbox()
    with socket.socket() as probe:  # aiosmtpd cannot let the system choose
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(inbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield (
            f"mailto://127.0.0.1:{port}?from=visdiv@example.com&to=team@example.com",
            inbox.messages,
        )
    finally:
        controller.stop()
