"""Progress of long work: a bar on a terminal; in a log, a line every half minute.

Not here: what is done, and how far it is.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from visdiv_assets.cli.console import err

if TYPE_CHECKING:
    from visdiv_assets.embedding.pipeline import OnProgress

# Between two lines in a log.
PROGRESS_SECONDS = 30.0


def progress_bar(what: str, *columns: ProgressColumn) -> Progress:
    """A bar that shows on a terminal, and goes when it is done."""
    return Progress(
        TextColumn(what, markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        TextColumn("left"),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """Progress as (done, total)."""
    say = _every(PROGRESS_SECONDS)
    with progress_bar(what, MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=None)

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            say(lambda: f"{what}: {done:,} of {total:,}")

        yield on_progress


@contextmanager
def by_steps(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """Progress as (step, done, total) of one step after the other."""
    say, current = _every(PROGRESS_SECONDS), ""
    with progress_bar("{task.description}", TaskProgressColumn()) as progress:
        task = progress.add_task(name, total=None)

        def on_progress(step: str, done: int, total: int) -> None:
            nonlocal current
            if step != current:
                current = step
                progress.reset(task, total=total, description=f"{name}: {step}")
            progress.update(task, completed=done, total=total)
            say(lambda: f"{name}: {step}, {done / max(total, 1):.0%}")

        yield on_progress


@contextmanager
def of_images(name: str) -> "Iterator[OnProgress]":
    """Progress of embedding, with its rate and the stage that limits it."""
    started, say = time.monotonic(), _every(PROGRESS_SECONDS)
    with progress_bar(name, MofNCompleteColumn(), TextColumn("{task.fields[rate]}")) as progress:
        task = progress.add_task("", total=None, rate="")

        def on_progress(done: int, total: int, embedded: int, bottleneck: str) -> None:
            seconds = time.monotonic() - started
            rate = f"{embedded / seconds:.1f} images/s, limit: {bottleneck}"
            progress.update(task, completed=done, total=total, rate=rate)
            say(lambda: f"{name}: {done:,} of {total:,}, {rate}")

        yield on_progress


def _every(seconds: float) -> Callable[[Callable[[], str]], None]:
    """A function that prints a line, unless there is a terminal or it has just printed one."""
    said = time.monotonic()

    def say(line: Callable[[], str]) -> None:
        nonlocal said
        if not err.is_terminal and time.monotonic() - said >= seconds:
            said = time.monotonic()
            err.print(line(), markup=False, soft_wrap=True)

    return say
