"""A process that decodes images one by one, so that no image can harm the run.

Here: the worker's side of the protocol. Not here: starting, watching and stopping it
(`decoders.py`). It imports little, because it is restarted after every image that crashes it.

On stdin, per image: its length (8 bytes) and its bytes. On stdout: b"+", the encoded width and
height (4 bytes each), what else is known (1 byte) and the pixels; or b"-", the length (4 bytes) of
a JSON array, and the array: reason, class of the exception.
"""

import contextlib
import json
import os
import signal
import sys
from typing import BinaryIO

from visdiv_assets.embedding.decoding import DecodeError, Decoding, decode_square, raise_limits

READY = b"!"

# Bits of what else is known of an image.
FLAT, CHANGED = 1, 2

# Address space. The largest image allowed by default takes 0.5 GB as RGB, twice that as RGBA.
MAX_BYTES = 4 * 2**30


def main() -> None:
    """Answer until stdin closes, which happens however the run ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run handles Ctrl-C and stops this process
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Should an image need NumPy: each of its threads would take address space.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    decoding = Decoding(**json.loads(sys.argv[1]))
    raise_limits(decoding)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # output printed by a decoder must not mix with answers
    answers.write(READY)
    answers.flush()
    while header := requests.read(8):
        _answer(requests.read(int.from_bytes(header)), decoding, answers)


def _answer(data: bytes, decoding: Decoding, answers: BinaryIO) -> None:
    try:
        square = decode_square(data, decoding)
        width, height = square.size
        known = FLAT * square.flat | CHANGED * square.changed
        pixels = square.image.tobytes()
    except DecodeError as error:
        said = json.dumps([error.reason, error.exception]).encode()
        answers.write(b"-" + len(said).to_bytes(4) + said)
    else:
        answers.write(b"+" + width.to_bytes(4) + height.to_bytes(4) + known.to_bytes(1))
        answers.write(pixels)
    answers.flush()


if __name__ == "__main__":
    main()
