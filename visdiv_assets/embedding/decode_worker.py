"""A process that decodes images one by one, so that no image can harm the run.

Here: the worker's side of the protocol. Not here: starting, watching and stopping it
(`decoders.py`). It imports little, because it is restarted after every image that crashes it.

On stdin, per image: what is asked for (1 byte), the image's length (8 bytes) and its bytes. On
stdout: b"+" and the encoded width and height (4 bytes each), and if pixels are asked for, what else
is known (1 byte) and the pixels; or b"-", the length (4 bytes) of a JSON array, and the array:
reason, class of the exception.
"""

import contextlib
import json
import os
import signal
import sys
from typing import BinaryIO

from visdiv_assets.embedding.decoding import (
    DecodeError,
    Decoding,
    decode_square,
    encoded_size,
    raise_limits,
)

READY = b"!"
PICTURE = b"P"
SIZE = b"S"

# Bits of what else is known of an image.
FLAT, CHANGED = 1, 2

# Address space. The largest image allowed by default takes 0.5 GB as RGB, twice that as RGBA.
MAX_BYTES = 4 * 2**30


def main() -> None:
    """Answer until stdin closes, which happens however the run ends."""
    # Terminals and batch systems send them to all processes; the run handles them, and stops this.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # SIGHUP: not on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Should an image need NumPy: each of its threads would take address space.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    decoding = Decoding(**json.loads(sys.argv[1]))
    raise_limits(decoding)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output printed by a decoder must not mix with answers
    answers.write(READY)
    answers.flush()
    while header := requests.read(9):
        _answer(header[:1], requests.read(int.from_bytes(header[1:])), decoding, answers)


def _answer(request: bytes, data: bytes, decoding: Decoding, answers: BinaryIO) -> None:
    pixels = b""
    try:
        if request == SIZE:
            width, height = encoded_size(data, decoding)
        else:
            square = decode_square(data, decoding)
            width, height = square.size
            known = FLAT * square.flat | CHANGED * square.changed
            pixels = known.to_bytes(1) + square.image.tobytes()
    except DecodeError as error:
        said = json.dumps([error.reason, error.exception]).encode()
        answers.write(b"-" + len(said).to_bytes(4) + said)
    else:
        answers.write(b"+" + width.to_bytes(4) + height.to_bytes(4))
        answers.write(pixels)
    answers.flush()


if __name__ == "__main__":
    main()
