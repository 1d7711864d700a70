"""In a process that is to be killed: tells the campaign of each step, and waits for its word.

Started as `python -m visdiv_assets_tests.campaigns.victim`, it is the command `visdiv`. Steps are
calls of the model, and files of the store that are opened, renamed or removed.

Not here: when to kill (`kills.py`), what Dagster loads (`location.py`).
"""

import contextlib
import os
import socket
import sys
import threading

from visdiv_assets_tests.campaigns.datasets import CheapRuntime, cheap_model

# In the environment: where the campaign listens, and the folder of the store.
LISTENER, STORE = "CAMPAIGN_LISTENER", "CAMPAIGN_STORE"

WATCHED = {"open", "os.rename", "os.remove"}

# Held to the end of the process: what is not held is undone when it is collected.
_for_good = contextlib.ExitStack()


class _Connection(threading.local):
    """Of each thread its own, so that a thread that is held holds up no other."""

    def __init__(self) -> None:
        host, port = os.environ[LISTENER].split(":")
        self.socket = socket.create_connection((host, int(port)))


class ReportingRuntime(CheapRuntime):
    """Tells of each call, and of the number of rows that came of it."""

    def embed(self, pixels):
        report("model 0")
        vectors = super().embed(pixels)
        report(f"model {len(pixels)}")
        return vectors


def report(step: str) -> None:
    """Tell the campaign of a step, and wait until it says go on."""
    with contextlib.suppress(OSError):  # the campaign is over
        _connection.socket.sendall(f"{os.getpid()} {step}\n".encode())
        _connection.socket.recv(1)


def install() -> None:
    """Watch this process from now on, to its end."""
    global _connection
    _connection = _Connection()
    _for_good.enter_context(cheap_model(ReportingRuntime(batch_size=4)))
    store = os.environ[STORE]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in WATCHED and isinstance(arguments[0], str) and arguments[0].startswith(store):
            report(f"{event} {arguments[0].removeprefix(store)}")

    sys.addaudithook(watch)


if __name__ == "__main__":
    from visdiv_assets.cli.main import main

    install()
    main()
