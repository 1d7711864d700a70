"""Requests to web servers, none of which may hang or be answered without end.

Here: limits on time and size, what went wrong in plain words. Not here: retries, which files there
are (`places.py`). Requests run in fsspec's thread, which all servers share: nothing in it waits.
"""

import asyncio
import concurrent.futures
import functools
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import IO, Any, NamedTuple, TypeVar, cast

import aiohttp

from visdiv_assets.sources.reaching import NoAnswerError, check_time, seconds_left

T = TypeVar("T")

CONNECT_SECONDS = 10.0  # to find a server and to connect to it
SILENT_SECONDS = 30.0  # without a byte
HEAD_SECONDS = 60.0  # until an answer begins, redirections included
# A body that comes more slowly than this, on average after the first minute, never ends.
SLOWEST_BYTES = 10_000
SLOW_SECONDS = 60.0

CHUNK_BYTES = 2**20

# Names are looked up in threads, which a name server that does not answer holds for long.
RESOLVERS = 64


class WebFile(NamedTuple):
    """What a server tells about a file.

    Attributes:
        size: in bytes; None if it tells none.
        version: its etag, or when it was changed; "" if it tells neither.
        ranges: whether it says that it sends parts of files.
    """

    size: int | None
    version: str
    ranges: bool


class StatusError(OSError):
    """A server answered with an error.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status


class Web:
    """Requests of one place, which share connections. All methods may be called by any thread.

    They raise FileNotFoundError if there is no such file, NoAnswerError if there was no answer,
    another OSError if it was of no use, and TookTooLongError if the time of a listing is over.
    """

    def __init__(self) -> None:
        import fsspec

        timeout = aiohttp.ClientTimeout(
            total=None,
            connect=CONNECT_SECONDS,
            sock_connect=CONNECT_SECONDS,
            sock_read=SILENT_SECONDS,
        )
        self._files: Any = fsspec.filesystem(
            "http", skip_instance_cache=True, client_kwargs={"timeout": timeout}
        )
        _many_resolvers(self._files.loop)

    def head(self, url: str) -> WebFile:
        """What the server tells about a file, before its content."""

        async def ask() -> WebFile:
            # Some servers answer HEAD with an error, or without a size.
            for method in ("HEAD", "GET"):
                try:
                    response = await self._begin(method, url)
                except (StatusError, FileNotFoundError):
                    if method == "GET":
                        raise
                    continue
                async with response:
                    told = _described(response)
                    if told.size is not None or method == "GET":
                        return told
            raise AssertionError

        return self._call(ask)

    def get(self, url: str, limit: int) -> bytes:
        """A file of at most `limit` bytes, by one request."""
        content = bytearray()

        async def ask() -> bytes:
            async with await self._begin("GET", url) as response:
                await _receive(response, content.extend, limit)
            return bytes(content)

        return self._call(ask)

    def part(self, url: str, start: int, size: int) -> bytes:
        """Some bytes of a file; fewer at its end."""
        content = bytearray()

        async def ask() -> bytes:
            wanted = {"Range": f"bytes={start}-{start + size - 1}"}
            try:
                response = await self._begin("GET", url, wanted)
            except StatusError as error:
                if error.status == 416:  # beyond the end
                    return b""
                raise
            async with response:
                if response.status != 206:
                    raise OSError("the server sends whole files only, although it told otherwise")
                await _receive(response, content.extend, size)
            return bytes(content)

        return self._call(ask)

    def copy(self, url: str, file: IO[bytes], limit: int) -> None:
        """Write a file of at most `limit` bytes to another one."""

        async def ask() -> None:
            async with await self._begin("GET", url) as response:
                await _receive(response, file.write, limit)

        self._call(ask)

    async def _begin(
        self, method: str, url: str, headers: dict[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        session = await self._files.set_session()
        # Packed content would have another size, and parts of it could not be unpacked.
        asked = {"Accept-Encoding": "identity", **(headers or {})}
        async with asyncio.timeout(HEAD_SECONDS):
            response: aiohttp.ClientResponse = await session.request(
                method, self._files.encode_url(url), headers=asked, allow_redirects=True
            )
        if response.status < 400:
            return response
        response.release()
        if response.status in (404, 410):
            raise FileNotFoundError(f"HTTP status {response.status}")
        raise StatusError(response.status)

    def _call(self, ask: Callable[[], Awaitable[T]]) -> T:
        from fsspec.asyn import sync
        from fsspec.exceptions import FSTimeoutError

        check_time()
        left = seconds_left()

        async def plainly() -> T:
            try:
                return await ask()
            except (aiohttp.ClientError, TimeoutError, ValueError, ssl.SSLError) as error:
                raise _plain(error) from None

        try:
            limit = None if left == float("inf") else left
            return cast(T, sync(self._files.loop, plainly, timeout=limit))
        except FSTimeoutError:
            check_time()
            raise NoAnswerError(_silent()) from None


async def _receive(
    response: aiohttp.ClientResponse, write: Callable[[bytes], object], limit: int
) -> None:
    began, received = time.monotonic(), 0
    if (told := response.content_length) is not None and told > limit:
        raise OSError(f"larger than {limit:,} bytes")
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        received += len(chunk)
        if received > limit:
            raise OSError(f"larger than {limit:,} bytes")
        if received < (time.monotonic() - began - SLOW_SECONDS) * SLOWEST_BYTES:
            raise NoAnswerError(f"the server sends less than {SLOWEST_BYTES:,} bytes a second")
        write(chunk)


def _described(response: aiohttp.ClientResponse) -> WebFile:
    headers = response.headers
    packed = headers.get("Content-Encoding", "identity") not in ("identity", "")
    size = None if packed else response.content_length
    version = headers.get("ETag") or headers.get("Last-Modified") or ""
    return WebFile(size, version, headers.get("Accept-Ranges", "").lower() == "bytes")


def _silent() -> str:
    return f"the server does not answer ({SILENT_SECONDS:g} s)"


def _plain(error: Exception) -> OSError:
    """What went wrong, without aiohttp's words where they say little."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return OSError(f"its certificate is not valid: {error.certificate_error}")
        case aiohttp.ClientConnectorDNSError():
            return NoAnswerError(f"cannot find the server {error.host} (DNS): {error.os_error}")
        case aiohttp.ClientConnectorSSLError() | ssl.SSLError():
            return OSError("there is no TLS at this address, or none that works here")
        case aiohttp.ClientConnectorError():
            where = f"{error.host}:{error.port}"
            return NoAnswerError(f"cannot connect to {where}: {error.os_error.strerror or error}")
        case aiohttp.ConnectionTimeoutError():
            return NoAnswerError(f"cannot connect to the server ({CONNECT_SECONDS:g} s)")
        case TimeoutError():
            return NoAnswerError(_silent())
        case aiohttp.TooManyRedirects():
            return OSError("its redirections do not end")
        case aiohttp.ClientResponseError():
            return OSError(f"the server does not speak HTTP: {error.message}")
        case aiohttp.ClientPayloadError() | aiohttp.ClientConnectionError():
            return NoAnswerError("the server closed the connection midway")
    return OSError(f"{type(error).__name__}: {error}")


@functools.cache
def _many_resolvers(loop: asyncio.AbstractEventLoop) -> None:
    # By default there are as few as six: names that hang would keep all other servers from
    # being found.
    pool = concurrent.futures.ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolve")
    loop.call_soon_threadsafe(loop.set_default_executor, pool)
