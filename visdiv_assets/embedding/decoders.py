"""Decoding in separate processes: a crash or a hang costs one image, not the run.

Here: starting, watching and replacing `decode_worker` processes. Not here: decoding.
"""

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

import numpy as np

from visdiv_assets.embedding.decode_worker import CHANGED, FLAT, READY
from visdiv_assets.embedding.preprocess import IMAGE_SIDE, DecodeError, Decoding, Pixels
from visdiv_assets.errors import VisdivError

COMMAND = (sys.executable, "-m", "visdiv_assets.embedding.decode_worker")
START_SECONDS = 60.0
PIXEL_BYTES = IMAGE_SIDE * IMAGE_SIDE * 3
PIPE_BYTES = 2**20
MAX_ANSWER_BYTES = 2**16


class Picture(NamedTuple):
    """A decoded image: pixels as from `preprocess.decode_image`, encoded width and height.

    `flat` and `changed` are those of `decoding.Square`.
    """

    pixels: Pixels
    width: int
    height: int
    flat: bool
    changed: bool


class Decoders:
    """Up to `processes` decoder processes, started on demand and shared by threads.

    Args:
        decoding: how to decode, and the limits.
        processes: largest number of processes.
        command: command that starts a process.
    """

    def __init__(
        self, decoding: Decoding, processes: int, command: Sequence[str] = COMMAND
    ) -> None:
        self._decoding, self._command = decoding, command
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)
        self._processes = processes

    def decode(self, data: bytes) -> Pixels:
        """The pixels of `picture`."""
        return self.picture(data).pixels

    def picture(self, data: bytes) -> Picture:
        """As `preprocess.decode_image`; waits for a free process.

        Raises:
            DecodeError: the image cannot be decoded, takes too long, or crashes its process.
            VisdivError: no process can be started.
        """
        process = self._idle.get()
        try:
            process = process or _Process(self._command, self._decoding)
            return process.decode(data)
        except _GoneError as error:
            process = None
            raise DecodeError(str(error), error.exception) from None
        except BaseException as error:
            if process and not isinstance(error, DecodeError):
                process.kill()
                process = None
            raise
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Stop all processes; no image may be decoding."""
        # Take all before putting any back, since the queue returns the last one put.
        for process in [self._idle.get() for _ in range(self._processes)]:
            if process:
                process.kill()
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _GoneError(Exception):
    """The process was killed, or exited by itself."""

    def __init__(self, reason: str, exception: str) -> None:
        super().__init__(reason)
        self.exception = exception


class _Process:
    def __init__(self, command: Sequence[str], decoding: Decoding) -> None:
        package = str(Path(__file__).parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._seconds = decoding.max_seconds
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [*command, json.dumps(asdict(decoding))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # C codecs print to it
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        except OSError as error:
            raise VisdivError(f"the decoder does not start: {error}") from None
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both are pipes")
        self._requests, self._answers = self._process.stdin, self._process.stdout
        _enlarge(self._requests)
        _enlarge(self._answers)
        self._deadline = time.monotonic() + START_SECONDS
        try:
            ready = self._read(1)
        except _GoneError:
            ready = bytearray()
        if ready != READY:
            self.kill()
            raise VisdivError(f"the decoder does not start; run `{' '.join(command)}` to see why")

    def decode(self, data: bytes) -> Picture:
        self._deadline = time.monotonic() + self._seconds
        try:
            _write(self._requests, len(data).to_bytes(8))
            _write(self._requests, data)
        except OSError:
            raise self._gone() from None
        verdict = self._read(1)
        if verdict == b"+":
            width, height = (int.from_bytes(self._read(4)) for _ in range(2))
            known = self._read(1)[0]
            pixels = np.frombuffer(self._read(PIXEL_BYTES), dtype=np.uint8)
            square = pixels.reshape(IMAGE_SIDE, IMAGE_SIDE, 3)
            return Picture(square, width, height, bool(known & FLAT), bool(known & CHANGED))
        size = int.from_bytes(self._read(4))
        try:
            if verdict != b"-" or size > MAX_ANSWER_BYTES:
                raise ValueError("neither pixels nor a reason")
            reason, exception = json.loads(self._read(size))
        except (ValueError, TypeError):
            self.kill()
            raise _GoneError("the decoder gave an invalid answer", "ProcessError") from None
        raise DecodeError(str(reason), str(exception))

    def _read(self, size: int) -> bytearray:
        content = bytearray(size)
        view, done = memoryview(content), 0
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while done < size:
            left = self._deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                self.kill()
                raise _GoneError(
                    f"decoding took longer than {self._seconds:g} seconds", "TimeoutError"
                )
            got = os.readv(self._answers.fileno(), [view[done:]])
            if not got:
                raise self._gone()
            done += got
        return content

    def _gone(self) -> _GoneError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its pipe closes just before its exit code is available
        self.kill()
        code = self._process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return _GoneError(f"the decoder crashed ({how})", "ProcessError")

    def kill(self) -> None:
        """Kill the process if it is still running."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._answers.close()


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file.fileno(), view) :]


def _enlarge(pipe: IO[bytes]) -> None:
    """Enlarge a pipe's buffer, for fewer context switches; does nothing except on Linux."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
