"""Decoding in separate processes: a crash or a hang costs one image, not the run.

Here: starting, watching and replacing `decode_worker` processes. Not here: decoding.
"""

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.machinery import PathFinder
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self, TypeVar

import numpy as np
import PIL
import tenacity

from visdiv_assets.embedding.decode_worker import (
    CHANGED,
    FLAT,
    MAX_BYTES,
    PICTURE,
    READY,
    SIZE,
)
from visdiv_assets.embedding.preprocess import IMAGE_SIDE, DecodeError, Decoding, Pixels
from visdiv_assets.errors import VisdivError

# With -I and -S nothing is imported but the standard library and, after it, what is in the folders
# passed on: not the current folder, nor PYTHONPATH, nor start-up code in site-packages.
BOOT = (
    "import json, sys; sys.path += json.loads(sys.argv.pop(1)); "
    "from visdiv_assets.embedding.decode_worker import main; main()"
)


def _homes() -> list[str]:
    """Folders of the packages that decoders need, in the order in which this process looks there.

    So decoders run the code that this process would run, however it was installed.
    """
    folders = [*PIL.__path__, *np.__path__]
    # An empty entry means the current folder.
    heif = PathFinder.find_spec("pillow_heif", [entry for entry in sys.path if entry])
    if heif and heif.submodule_search_locations:
        folders += heif.submodule_search_locations
    homes = [str(Path(folder).absolute().parent) for folder in folders]
    homes.sort(key=lambda home: sys.path.index(home) if home in sys.path else len(sys.path))
    # The package comes last, since beside it there may be a whole checkout.
    return list(dict.fromkeys([*homes, str(Path(__file__).absolute().parents[2])]))


COMMAND = (
    sys.executable,
    *("-I", "-S", *(["-B"] if sys.dont_write_bytecode else [])),
    *("-c", BOOT, json.dumps(_homes())),
)
START_SECONDS = 60.0
START_TRIES = 5  # in 7.5 seconds
# An image may not be to blame for what happens to its decoder, and is tried again in a fresh one.
TRIES = 2
STEP_SECONDS = 0.25
PIXEL_BYTES = IMAGE_SIDE * IMAGE_SIDE * 3
PIPE_BYTES = 2**20
MAX_ANSWER_BYTES = 2**16
MAX_PRINTED_BYTES = 2**12

_Answer = TypeVar("_Answer")


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
        clock: gives the time, in seconds.
        sleep: waits for a number of seconds, before a process that did not start is started again.
    """

    def __init__(
        self,
        decoding: Decoding,
        processes: int,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._decoding, self._command, self._clock, self._sleep = decoding, command, clock, sleep
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)
        self._processes = processes
        self._closed = False

    def decode(self, data: bytes) -> Pixels:
        """The pixels of `picture`."""
        return self.picture(data).pixels

    def picture(self, data: bytes) -> Picture:
        """As `preprocess.decode_image`; waits for a free process.

        Raises:
            DecodeError: the image cannot be decoded, or twice takes too long or brings its process
                down.
            VisdivError: no process can be started.
        """
        return self._ask(lambda process: process.picture(data))

    def size(self, data: bytes) -> tuple[int, int]:
        """The encoded width and height, from the image's header; raises as `picture` does."""
        return self._ask(lambda process: process.size(data))

    def _ask(self, question: Callable[["_Process"], _Answer]) -> _Answer:
        process = self._idle.get()
        try:
            if self._closed:
                raise RuntimeError("these decoders are closed")
            if process and not process.is_alive():
                process.kill()
                process = None
            for tries in range(1, TRIES + 1):
                process = process or self._start()
                try:
                    return question(process)
                except _GoneError as error:
                    process = None
                    if tries == TRIES:
                        raise DecodeError(str(error), error.exception) from None
            raise AssertionError("it is tried at least once")
        except BaseException as error:
            if process and not isinstance(error, DecodeError):
                process.kill()
                process = None
            raise
        finally:
            self._idle.put(process)

    def _start(self) -> "_Process":
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_GoneError),
            wait=tenacity.wait_exponential(0.5),
            stop=tenacity.stop_after_attempt(START_TRIES),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return patiently(_Process, self._command, self._decoding, self._clock)
        except _GoneError as error:
            raise VisdivError(f"the decoder does not start: {error}") from None

    def close(self) -> None:
        """Stop all processes; waits for images that are decoding."""
        self._closed = True
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
    """The process does not start, was killed, or exited by itself."""

    def __init__(self, reason: str, exception: str = "ProcessError") -> None:
        super().__init__(reason)
        self.exception = exception


class _Process:
    """One decoder; gone, it is killed and of no more use.

    Raises:
        _GoneError: it does not start.
    """

    def __init__(
        self,
        command: Sequence[str],
        decoding: Decoding,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._clock = decoding.max_seconds, clock
        self._printed = b""
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [*command, json.dumps(asdict(decoding))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=os.sep,  # the current one may be gone
            )
        except OSError as error:
            raise _GoneError(f"{error.strerror or error}: {command[0]}") from None
        try:
            pipes = self._process.stdin, self._process.stdout, self._process.stderr
            self._requests, self._answers, self._errors = (pipe for pipe in pipes if pipe)
            self._writable, self._readable = select.poll(), select.poll()
            self._writable.register(self._requests, select.POLLOUT)
            self._readable.register(self._answers, select.POLLIN)
            for poll in (self._writable, self._readable):
                poll.register(self._errors, select.POLLIN)
            os.set_blocking(self._requests.fileno(), False)
            os.set_blocking(self._errors.fileno(), False)
            _enlarge(self._requests)
            _enlarge(self._answers)
            self._await_start()
        except BaseException:
            self.kill()
            raise

    def _await_start(self) -> None:
        self._left = START_SECONDS
        try:
            if self._read(1) == READY:
                return
            reason = "it does not say that it is ready"
        except _GoneError as error:
            reason = str(error).replace("the decoder", "it")
            if error.exception == "TimeoutError":
                reason = f"it takes longer than {START_SECONDS:g} seconds"
        self._take_printed()
        printed = self._printed.decode(errors="replace").split("\n")
        last = next((line for line in reversed(printed) if line.strip()), "")
        last = "".join(char if char.isprintable() else " " for char in last).strip()
        raise _GoneError(f"{reason} and said: {last[:200]}" if last else reason)

    def is_alive(self) -> bool:
        """Whether it is still running."""
        return self._process.poll() is None

    def picture(self, data: bytes) -> Picture:
        """As `Decoders.picture`, tried once."""
        width, height = self._ask(PICTURE, data)
        known = self._read(1)[0]
        pixels = np.frombuffer(self._read(PIXEL_BYTES), dtype=np.uint8)
        square = pixels.reshape(IMAGE_SIDE, IMAGE_SIDE, 3)
        return Picture(square, width, height, bool(known & FLAT), bool(known & CHANGED))

    def size(self, data: bytes) -> tuple[int, int]:
        """As `Decoders.size`, tried once."""
        return self._ask(SIZE, data)

    def _ask(self, request: bytes, data: bytes) -> tuple[int, int]:
        """Width and height; the rest of the answer is left to be read."""
        self._left, self._printed = self._seconds, b""
        self._write(request + len(data).to_bytes(8))
        self._write(data)
        verdict = self._read(1)
        if verdict == b"+":
            return int.from_bytes(self._read(4)), int.from_bytes(self._read(4))
        size = int.from_bytes(self._read(4))
        try:
            if verdict != b"-" or size > MAX_ANSWER_BYTES:
                raise ValueError("neither pixels nor a reason")
            reason, exception = map(str, json.loads(self._read(size)))
        except (ValueError, TypeError):
            self.kill()
            raise _GoneError("the decoder gave an invalid answer") from None
        if exception == "MemoryError":
            self.kill()  # a fresh process has more
            raise _out_of_memory()
        raise DecodeError(reason, exception)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._writable, self._requests)
            try:
                view = view[os.write(self._requests.fileno(), view) :]
            except BlockingIOError:  # writable, but by less than the kernel likes to take
                continue
            except OSError:
                raise self._gone() from None

    def _read(self, size: int) -> bytearray:
        content = bytearray(size)
        view, done = memoryview(content), 0
        while done < size:
            self._wait(self._readable, self._answers)
            got = os.readv(self._answers.fileno(), [view[done:]])
            if not got:
                raise self._gone()
            done += got
        return content

    def _wait(self, poll: select.poll, pipe: IO[bytes]) -> None:
        """Wait until a pipe is ready; take what is printed meanwhile, or the process would wait.

        Waits are short, and each counts for no longer than it was meant to be: no time is counted
        in which this process itself was stopped, and the decoder perhaps with it.
        """
        while self._left > 0:
            step = min(self._left, STEP_SECONDS)
            started = self._clock()
            ready = {number for number, _ in poll.poll(step * 1000)}
            self._left -= min(self._clock() - started, step)
            if self._errors.fileno() in ready:
                self._take_printed()
            if pipe.fileno() in ready:
                return
        self.kill()
        raise _GoneError(f"decoding took longer than {self._seconds:g} seconds", "TimeoutError")

    def _take_printed(self) -> None:
        """Read what is there of its standard error, of which the end is kept."""
        with contextlib.suppress(BlockingIOError, ValueError):  # nothing there; closed
            printed = os.read(self._errors.fileno(), 2**16)
            self._printed = (self._printed + printed)[-MAX_PRINTED_BYTES:]
            if not printed:
                for poll in (self._writable, self._readable):
                    with contextlib.suppress(KeyError):
                        poll.unregister(self._errors)

    def _gone(self) -> _GoneError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its pipe closes just before its exit code is available
        self._take_printed()
        self.kill()
        code = self._process.returncode
        if b"MemoryError" in self._printed or b"bad_alloc" in self._printed:
            return _out_of_memory()
        if code == -signal.SIGKILL:
            return _GoneError(f"the decoder was killed (signal {-code}), perhaps to free memory")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return _GoneError(f"the decoder crashed ({how})")

    def kill(self) -> None:
        """Kill the process if it is still running."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()


def _out_of_memory() -> _GoneError:
    limit = f"{MAX_BYTES / 2**30:g} GiB"
    return _GoneError(
        f"decoding takes more memory than there is; the limit is {limit}", "MemoryError"
    )


def _enlarge(pipe: IO[bytes]) -> None:
    """Enlarge a pipe's buffer, for fewer context switches; does nothing except on Linux."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
