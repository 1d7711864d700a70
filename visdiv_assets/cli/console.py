"""How every command speaks: two consoles, errors, exit codes, progress, the option --config.

Here: what all commands share. Not here: any command (`cli.py`, `cli_datasets.py`).
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from visdiv_assets.errors import VisdivError

if TYPE_CHECKING:
    from visdiv_assets.settings.model import Settings, SourceSettings
    from visdiv_assets.store.store import Store
    from visdiv_assets.warehouse.warehouse import Evaluation, Warehouse

EXIT_ERROR = 1
EXIT_BELOW = 3
EXIT_INTERRUPTED = 130

# Between two lines that tell of progress where there is no terminal.
PROGRESS_SECONDS = 30.0


# Names of files are shown as they are: no markup, no emoji codes.
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings file. Default: $VISDIV_CONFIG, else ./visdiv.yaml, else built-in settings.",
        metavar="FILE",
    ),
]


@contextmanager
def clear_errors() -> Iterator[None]:
    """What is wrong with the input, in one sentence; what was done survives Ctrl-C."""
    try:
        yield
    except VisdivError as error:
        print_error(str(error))
        raise typer.Exit(EXIT_ERROR) from None
    except BrokenPipeError:
        raise  # whoever read the output has seen enough; typer ends quietly
    except OSError as error:  # of the store: read-only, full, gone
        print_error(f"{error.filename or 'the store'}: {error.strerror or error}")
        raise typer.Exit(EXIT_ERROR) from None
    except KeyboardInterrupt:
        err.print("interrupted; what was embedded is kept, run the same command to go on")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def dataset_at(path: str, settings: "Settings") -> "tuple[str, SourceSettings]":
    """Name and source of what a user calls a dataset: a registered name, a path or a URI."""
    from visdiv_assets.settings.model import SourceSettings, absolute_path
    from visdiv_assets.sources.places import scheme_of
    from visdiv_assets.workflows.evaluate import dataset_name_for

    path = path.removeprefix("file://")
    if scheme_of(path):
        return dataset_name_for(path), SourceSettings.model_construct(uri=path)
    folder = absolute_path(path)
    if path in settings.datasets and not folder.exists():
        return path, settings.datasets[path].source
    for name, dataset in settings.datasets.items():
        if os.path.realpath(dataset.source.uri) == os.path.realpath(folder):
            return name, dataset.source
    # Unchecked, since the path may hold bytes that are not Unicode.
    return dataset_name_for(folder), SourceSettings.model_construct(uri=str(folder))


def print_error(message: str) -> None:
    """One sentence on stderr, as every error of the command begins."""
    err.print("[red]error:[/]", Text(visible(message)), soft_wrap=True)


def compact_table() -> Table:
    """A table without walls, so that many columns fit a terminal of 80."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def print_evaluations(evaluations: "Sequence[Evaluation]") -> None:
    """A table of evaluations; two lines each, so that it fits a terminal of 80 columns."""
    table = compact_table()
    table.add_column("dataset", overflow="fold")
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("score\n95 %", justify="right", no_wrap=True)
    table.add_column("rating", no_wrap=True)
    for heading in ("plain\nscore", "plain\nER", "plain\nPR", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in evaluations:
        images = f"{each.n_images:,}"
        if each.is_sample:
            images += f"\nof {each.n_listed:,}"
        stars = "★" * each.stars + "☆" * (5 - each.stars)
        table.add_row(
            each.dataset,
            images,
            f"[bold]{score_text(each)}[/]",
            f"{stars}\n{each.rating}" if each.stars else "too few\nto tell",
            f"{each.diversity_score:.4f}",
            f"{each.effective_rank:.2f}",
            f"{each.participation_ratio:.2f}",
            f"{each.seconds:.1f} s",
        )
    out.print(table)


def score_text(evaluation: "Evaluation") -> str:
    """The corrected score, and below it its interval."""
    score, low, high = (
        evaluation.corrected_score,
        evaluation.corrected_low,
        evaluation.corrected_high,
    )
    if score is None or low is None or high is None:
        return "too few\nto tell"
    return f"{score:.4f}\n{low:.3f}–{high:.3f}"


def visible(text: str) -> str:
    """Line breaks and control characters, as file names may hold them, in escaped form."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


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
    """Progress as done of total: a bar on a terminal; in a log, a line now and then."""
    said = time.monotonic()
    with progress_bar(what, MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=None)

        def on_progress(done: int, total: int) -> None:
            nonlocal said
            progress.update(task, completed=done, total=total)
            if not err.is_terminal and time.monotonic() - said >= PROGRESS_SECONDS:
                said = time.monotonic()
                err.print(f"{what}: {done:,} of {total:,}", markup=False, soft_wrap=True)

        yield on_progress


def opened(config: Path | None) -> "tuple[Settings, Store, Warehouse]":
    """The settings, and what they say is kept where."""
    from visdiv_assets.settings.model import load_settings
    from visdiv_assets.store.store import Store
    from visdiv_assets.warehouse.warehouse import Warehouse

    settings = load_settings(config)
    return settings, Store(settings.store), Warehouse(settings.store / "visdiv.duckdb")
