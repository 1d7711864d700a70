"""Real servers on loopback: one that speaks S3, one that serves a folder over HTTP."""

import contextlib
import functools
import http.server
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
