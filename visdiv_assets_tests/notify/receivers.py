"""Real services on loopback that alerts are sent to: a webhook and an SMTP server."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler


class Webhook(ThreadingHTTPServer):
    """Keeps the JSON bodies that it accepts; refuses all while `down`."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.received: list[dict[str, Any]] = []
        self.refused = 0
        self.down = False
        self.pause = 0.0  # seconds before it answers
        self.asked = threading.Event()

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
        self.server.asked.set()
        pause = self.server.pause
        if pause and not self.server.down:
            self.server.received.append(body)
            time.sleep(pause)
        if self.server.down:
            self.server.refused += 1
            self.send_response(503)
        else:
            if not pause:
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
    def __init__(self, refuses: str) -> None:
        super().__init__()
        self.messages: list[Any] = []
        self._refuses = refuses

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address == self._refuses:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    def handle_message(self, message: Any) -> None:
        self.messages.append(message)


@contextmanager
def smtp_server(refuses: str = "") -> Iterator[tuple[str, list[Any]]]:
    """An Apprise URL of a mail server, and the messages it gets."""
    inbox = _Inbox(refuses)
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


@contextmanager
def hanging(count: int) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Ports of servers that accept and never answer, and what ends all their connections."""
    stop, connections = threading.Event(), []
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while not stop.is_set():
                connections.append(listener.accept()[0])

    def let_go() -> None:
        stop.set()
        for listener in listeners:
            listener.close()
        for connection in connections:
            connection.close()

    for listener in listeners:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
    try:
        yield [listener.getsockname()[1] for listener in listeners], let_go
    finally:
        let_go()
