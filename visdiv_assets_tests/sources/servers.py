"""Real servers on loopback: one that speaks S3, one that serves a folder over HTTP."""

import contextlib
import functools
import http.server
import io
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moto.server import ThreadedMotoServer, create_backend_app
from werkzeug.serving import make_server

SECRET = "SecretAccessKeyThatNobodyMaySee"


@contextlib.contextmanager
def s3_server(wrap: Callable[[Any], Any] | None = None) -> Iterator[str]:
    """The address of a server that speaks S3; `wrap` may put something in front of its WSGI app."""
    if wrap is None:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it does
            server.start()
        host, port = server.get_host_and_port()
        try:
            yield f"http://{host}:{port}"
        finally:
            server.stop()
        return
    app = wrap(create_backend_app("s3"))
    web = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, headers: Mapping[str, str], **options: Any) -> None:
        self._more = headers
        super().__init__(*args, **options)

    def end_headers(self) -> None:
        for name, value in self._more.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def http_server(folder: Path, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a web server with the files of a folder; `headers` go with every answer."""
    handler = functools.partial(_Quiet, directory=str(folder), headers=headers or {})
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        thread.join()


@contextlib.contextmanager
def socket_server(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """Host and port of a server that does with each connection whatever `behave` does.

    What `behave` returns from is closed; at the end, all connections are cut.
    """
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            behave(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for each in connections:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def silent(connection: socket.socket) -> None:
    """Accepts and never answers."""
    while connection.recv(65_536):
        pass


def answering(answer: Callable[[str, str], bytes | None]) -> Callable[[socket.socket], None]:
    """Answers each request with what `answer` makes of its method and path; None is silence."""

    def behave(connection: socket.socket) -> None:
        asked = connection.makefile("rb")
        while line := asked.readline():
            method, path, _ = line.decode().split(" ", 2)
            while asked.readline().strip():
                pass
            data = answer(method, path)
            if data is None:
                silent(connection)
                return
            connection.sendall(data)

    return behave


def head(status: str = "200 OK", **headers: object) -> bytes:
    """The head of an answer; underscores in the names of headers become dashes."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()
