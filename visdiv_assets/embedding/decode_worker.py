"""A process that decodes one image after the other, so that no image can harm the run.

Here: the process's own side of the conversation. Not here: starting, watching and ending it
(`decoders.py`). Imports little, since it starts anew after every image that brings it down.

On stdin, per image: its length (8 bytes) and its bytes. On stdout: b"+", width and height as it was
encoded (4 bytes each) and the pixels, or b"-", the length (4 bytes) of a JSON array, and the array:
reason, class of the exception.
"""

import contextlib
import json
import signal
import sys
from typing import BinaryIO

from visdiv_assets.embedding.decoding import DecodeError, Decoding, decode_square

READY = b"!"

# Address space: the largest image that is let through takes 0.5 GB as RGB, twice that as RGBA.
MAX_BYTES = 4 * 2**30


def main() -> None:
    """Answer until stdin ends, which it does when the run does, whatever ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    decoding = Decoding(**json.loads(sys.argv[1]))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a decoder prints is no answer
    answers.write(READY)
    answers.flush()
    while header := requests.read(8):
        _answer(requests.read(int.from_bytes(header)), decoding, answers)


def _answer(data: bytes, decoding: Decoding, answers: BinaryIO) -> None:
    try:
        square, (width, height) = decode_square(data, decoding)
        pixels = square.tobytes()
    except DecodeError as error:
        said = json.dumps([error.reason, error.exception]).encode()
        answers.write(b"-" + len(said).to_bytes(4) + said)
    else:
        answers.write(b"+" + width.to_bytes(4) + height.to_bytes(4))
        answers.write(pixels)
    answers.flush()


if __name__ == "__main__":
    main()
