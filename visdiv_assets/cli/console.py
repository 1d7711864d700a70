"""How every command speaks: consoles, errors, exit codes, tables, common options.

Here: what all commands share. Not here: progress bars (`progress.py`), any command.
"""

import io
import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
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
    from visdiv_assets.settings.model import Settings
    from visdiv_assets.warehouse.records import Evaluation
    from visdiv_assets.workflows.project import EvaluatedDataset, Project

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


# More than any store holds, and still a number that every library takes.
MOST = 1_000_000_000

# Characters of a line of the column "rating".
NARROW = 13

# What Pillow writes a picture as, by the end of its file's name.
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def not_nan(value: float | None) -> float | None:
    """Refuse the one number that is neither below nor above a limit."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


def _check_picture(path: Path | None) -> Path | None:
    """Refuse a picture of no known kind before the work begins."""
    if path is not None and path.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"a picture must end in {', '.join(PICTURES)}; got {path}")
    return path


Name = Annotated[str, typer.Argument(help="Name of the dataset.", metavar="NAME")]
AnyDataset = Annotated[
    str,
    typer.Argument(help="Name of a dataset, or a source that was scored.", metavar="NAME"),
]
AnyDatasets = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Default: all registered datasets."),
]
Sheet = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=_check_picture,
        help="Draw them as a contact sheet: .png, .jpg or .webp.",
    ),
]
Chart = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", callback=_check_picture, help="Also draw it: .png, .jpg or .webp."
    ),
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
def clear_errors(interrupted: str = "interrupted; run the command again") -> Iterator[None]:
    """What is wrong with the input, in one sentence; on Ctrl-C, what became of the work."""
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
            err.print(interrupted)
        raise typer.Exit(
            interrupt.code if isinstance(interrupt, Ended) else EXIT_INTERRUPTED
        ) from None


def print_error(message: str) -> None:
    """One sentence on stderr, as every error of the command begins."""
    err.print("[red]error:[/]", Text(visible(redacted(message))), soft_wrap=True)


def print_warning(message: str) -> None:
    """One sentence on stderr about what a command does without."""
    err.print("[yellow]warning:[/]", Text(visible(redacted(message))), soft_wrap=True)


def print_json(value: object) -> None:
    """One line of JSON on stdout, which any parser reads: NaN and infinity are null.

    Secrets in it are not shown.
    """
    print(json.dumps(_fit(value), allow_nan=False), flush=True)


def _fit(value: object) -> object:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _fit(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_fit(each) for each in value]
    return value


def evaluation_as_json(evaluation: "Evaluation") -> dict[str, object]:
    """An evaluation, by the same names in every command.

    `score` is the one that the dataset is judged by, which `basis` names.
    """
    return {
        "dataset": evaluation.dataset,
        "evaluated_at": evaluation.evaluated_at.isoformat(),
        "score": evaluation.judged_score,
        "basis": evaluation.basis,
        "corrected_score": evaluation.corrected_score,
        "corrected_low": evaluation.corrected_low,
        "corrected_high": evaluation.corrected_high,
        "corrected_effective_rank": evaluation.corrected_effective_rank,
        "corrected_participation_ratio": evaluation.corrected_participation_ratio,
        "effective_rank_low": evaluation.effective_rank_low,
        "effective_rank_high": evaluation.effective_rank_high,
        "participation_ratio_low": evaluation.participation_ratio_low,
        "participation_ratio_high": evaluation.participation_ratio_high,
        "sampling_unit": evaluation.sampling_unit,
        "n_units": evaluation.n_units,
        "other_score": evaluation.other_score,
        "other_low": evaluation.other_low,
        "other_high": evaluation.other_high,
        "two_readings": evaluation.two_readings or None,
        "estimator": evaluation.estimator,
        "plain_score": evaluation.diversity_score,
        "diversity_score": evaluation.diversity_score,  # its name in the table evaluations
        "effective_rank": evaluation.effective_rank,
        "participation_ratio": evaluation.participation_ratio,
        "rating": evaluation.rating,
        "stars": evaluation.stars,
        "meaning": evaluation.meaning or None,
        "spread": evaluation.spread,
        "vendi": evaluation.vendi,
        "rke": evaluation.rke,
        "n_images": evaluation.n_images,
        "n_failed": evaluation.n_failed,
        "n_flat": evaluation.n_flat,
        "n_listed": evaluation.n_listed,
        "dimension": evaluation.dimension,
        "model_id": evaluation.model_id,
        "seconds": round(evaluation.seconds, 3),
    }


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
    table.add_column("score\nas it is", justify="right", no_wrap=True)
    table.add_column("corrected\n95 %", justify="right", no_wrap=True)
    table.add_column("rating", no_wrap=True)
    for heading in ("ER\nas is", "PR\nas is", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in evaluations:
        images = f"{each.n_images:,}"
        if each.is_sample:
            images += f"\nof {each.n_listed:,}"
        table.add_row(
            each.dataset,
            images,
            f"[bold]{each.diversity_score:.4f}[/]",
            f"[bold]{score_text(each)}[/]",
            rating_text(each),
            f"{each.effective_rank:.1f}",
            f"{each.participation_ratio:.1f}",
            f"{each.seconds:.1f} s" if each.seconds < 9.95 else f"{each.seconds:,.0f} s",
        )
    out.print(table)
    for each in evaluations:
        for sentence in sentences_on(each):
            say(f"{each.dataset}: {sentence}")


def rating_text(evaluation: "Evaluation") -> str:
    """The stars, and below them the rating; or why there are none, in two lines."""
    if stars := evaluation.rated.text:
        return f"{stars}\n{evaluation.rating}"
    return textwrap.fill(evaluation.rating, NARROW)


def sentences_on(evaluation: "Evaluation") -> list[str]:
    """What the numbers mean for these images, and by what they were judged."""
    from visdiv_assets.quality.ratings import NEARLY_ONE

    said = []
    if evaluation.meaning:
        said.append(f"{evaluation.rated.text} {evaluation.rating}: {evaluation.meaning}.")
    if evaluation.spread is not None and evaluation.spread < NEARLY_ONE:
        said.append(
            f"The images are nearly one image (1 − ‖mean‖² = {evaluation.spread:.3f}), so there "
            "are no stars: the score tells only how their small differences are spread."
        )
    elif evaluation.is_one_many_times:
        said.append(
            f"{evaluation.n_images:,} images are about {evaluation.n_units:,.0f} different ones, "
            "many times over. That is too few to tell how diverse their source is."
        )
    if evaluation.two_readings and not evaluation.is_one_many_times:
        said.append(f"{evaluation.two_readings} (judged: by {evaluation.sampling_unit}).")
    return said


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


def dataset_called(called: str, project: "Project") -> "EvaluatedDataset":
    """The dataset that a user names, the same one in every command, and its newest evaluation.

    Raises:
        VisdivError: there is no such dataset, or it was never evaluated.
    """
    tell_which(called, project.settings)
    return project.dataset_at(called)


def tell_which(called: str, settings: "Settings") -> None:
    """Say so where a name is that of a dataset and of a folder."""
    from visdiv_assets.workflows.project import which_was_taken

    if told := which_was_taken(called, settings):
        err.print(told, markup=False, soft_wrap=True)


def write_picture(path: Path, png: bytes) -> None:
    """Write a PNG as what the end of the file's name says; VisdivError where that cannot be."""
    kind = PICTURES[path.suffix.lower()]
    if kind != "PNG":
        from PIL import Image

        with Image.open(io.BytesIO(png)) as picture, io.BytesIO() as file:
            try:
                picture.convert("RGB").save(file, kind, quality=92)
            except OSError as error:  # JPEG ends at 65,535 pixels, WebP at 16,383
                raise VisdivError(f"cannot draw {path} as {kind}: {error}; use .png") from error
            png = file.getvalue()
    write_file(path, png)


def open_project(config: Path | None, *called: str, tell: bool = True) -> "Project":
    """The datasets of the settings, and where their results are kept.

    What is wrong with other datasets than those that a command is about is told, and stops nothing.

    Args:
        config: the settings file, if one is named.
        called: what the command is about; it fails because of their faults, and says so itself.
        tell: whether to warn of the faults of all others.
    """
    from visdiv_assets.settings.reading import load_settings
    from visdiv_assets.workflows.project import Project, store_of, warehouse_of

    settings = load_settings(config)
    for name, fault in settings.faults.items():
        if tell and name not in called:
            print_warning(fault)
    return Project(settings, store_of(settings), warehouse_of(settings))
