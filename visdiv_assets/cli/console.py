"""How every command speaks: consoles, errors, exit codes, tables, common options.

Here: what all commands share. Not here: progress bars (`progress.py`), any command.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import redacted

if TYPE_CHECKING:
    from visdiv_assets.warehouse.records import Evaluation
    from visdiv_assets.workflows.project import Project

EXIT_ERROR = 1
EXIT_BELOW = 3
EXIT_INTERRUPTED = 130


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


Name = Annotated[str, typer.Argument(help="Name of the dataset.", metavar="NAME")]
AnyDataset = Annotated[
    str,
    typer.Argument(help="Name of a dataset, or a source that was scored.", metavar="NAME"),
]
Sheet = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw them as a contact sheet (PNG).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", metavar="")]


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a command as Ctrl-C does.

    Attributes:
        code: exit code, 128 + the number of the signal, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


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
    except KeyboardInterrupt as interrupt:
        with suppress(OSError):  # the terminal may be gone
            err.print("interrupted; finished embeddings are kept, run the same command to continue")
        raise typer.Exit(
            interrupt.code if isinstance(interrupt, Ended) else EXIT_INTERRUPTED
        ) from None


def print_error(message: str) -> None:
    """One sentence on stderr, as every error of the command begins."""
    err.print("[red]error:[/]", Text(visible(redacted(message))), soft_wrap=True)


def say(text: str) -> None:
    """A sentence on stdout, which may hold names from outside."""
    out.print(redacted(text), markup=False, soft_wrap=True)


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


def write_file(path: Path, content: bytes) -> None:
    """Write what a user asked for; VisdivError where that is not possible."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise VisdivError(f"cannot write {path}: {error.strerror}") from error


def open_project(config: Path | None) -> "Project":
    """The datasets of the settings, and where their results are kept."""
    from visdiv_assets.settings.reading import load_settings
    from visdiv_assets.store.store import Store
    from visdiv_assets.warehouse.warehouse import Warehouse
    from visdiv_assets.workflows.project import Project

    settings = load_settings(config)
    return Project(settings, Store(settings.store), Warehouse(settings.store / "visdiv.duckdb"))
