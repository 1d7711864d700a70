"""The command that chooses images: `visdiv select`.

Here: arguments, files, tables. Not here: any computation (`workflows/select.py`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from visdiv_assets.cli.console import (
    MOST,
    AnyDataset,
    Config,
    Json,
    Sheet,
    clear_errors,
    dataset_called,
    err,
    not_nan,
    open_project,
    print_json,
    visible,
    write_picture,
)
from visdiv_assets.cli.progress import counted
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import SelectionMethod

if TYPE_CHECKING:
    from visdiv_assets.workflows.select import CoreSet

commands = typer.Typer()


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv select birds -k 1000 --out list.txt        the images worth labelling
  visdiv select birds -k 100 --method log-det --sheet chosen.png
  visdiv select birds -k 100 --include labelled.txt --exclude unusable.txt
  visdiv select birds -k 100 --json | jq .score

[bold]Methods[/]

  k-centre            no image is far from a chosen one: the farthest counts, not
                      the average; takes rare images first
  log-det             as different from each other as can be; highest score
  leverage            in directions that few others have; fastest; may take near-copies
  facility-location   stand for the others, each region counting the same
"""
)
def select(
    name: AnyDataset,
    k: Annotated[int, typer.Option("-k", min=1, max=MOST, metavar="K", help="How many images.")],
    method: Annotated[
        SelectionMethod, typer.Option(metavar="METHOD", help="See below.")
    ] = "k-centre",
    include: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of image ids, one per line, to choose in any case."
        ),
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of image ids, one per line, to leave out."),
    ] = None,
    trim: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.99,
            callback=not_nan,
            metavar="SHARE",
            help="Leave out this share of the images, the most isolated ones.",
        ),
    ] = 0.0,
    list_file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the ids to this file, one per line."),
    ] = None,
    sheet: Sheet = None,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Choose the K images that represent a dataset best, or that differ most.

    Uses the embeddings of the newest evaluation. Image ids come in the order of choice.
    """
    with clear_errors():
        from visdiv_assets.workflows.select import core_set_sheet, select_core_set

        project = open_project(config, name)
        dataset = dataset_called(name, project)
        if sheet is not None:
            _ = dataset.source  # refused before the work begins
        wanted, unwanted = _ids(include), _ids(exclude)
        with counted("choosing") as on_progress:
            found = select_core_set(
                dataset.name,
                project.store,
                project.warehouse,
                k,
                method,
                include=wanted,
                exclude=unwanted,
                trim=trim,
                on_progress=on_progress,
            )
        if list_file is not None:
            _write_ids(list_file, found.image_ids)
        if sheet is not None:
            write_picture(sheet, core_set_sheet(found, dataset.source, dataset.decoding))
    if json_output:
        print_json(_as_json(found))
        return
    if list_file is None:
        for image_id in found.image_ids:
            print(visible(image_id))
    _print_scores(found)
    for file in (list_file, sheet):
        if file is not None:
            err.print(f"written to {file}", markup=False, soft_wrap=True)


def _ids(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VisdivError(f"{path} is not a text file in UTF-8") from error
    return list(dict.fromkeys(line for line in text.split("\n") if line.strip()))


def _write_ids(path: Path, image_ids: list[str]) -> None:
    for image_id in image_ids:
        if "\n" in image_id or "\r" in image_id:
            raise VisdivError(
                f"the id {image_id!r} contains a line break, so it cannot be written to a list"
            )
    path.write_text("".join(f"{each}\n" for each in image_ids), encoding="utf-8")


def _print_scores(found: "CoreSet") -> None:
    """On stderr, so that the list alone is on stdout."""
    table = Table()
    table.add_column("")
    table.add_column("chosen", justify="right")
    table.add_column("at random", justify="right")
    own, random = found.scores.plain, found.random_plain()
    told = "too few" if random is None else f"{random[0]:.4f} ± {random[1]:.4f}"
    table.add_row("plain score", "too few" if own is None else f"{own:.4f}", told)
    radius = found.random[0].radius
    table.add_row("covering radius", f"{found.scores.radius:.4f}", f"{radius:.4f}")
    err.print(table)
    err.print(
        f"{len(found.image_ids):,} of {found.n_distinct:,} different images, by {found.method}. "
        "At random: as many, ten times, mean ± standard deviation.\n"
        "Covering radius: how far the image that is represented worst is from the nearest chosen.\n"
        "No corrected score: chosen images are no random sample."
    )


def _as_json(found: "CoreSet") -> dict[str, object]:
    plain = found.random_plain()
    return {
        "dataset": found.dataset,
        "method": found.method,
        "k": len(found.image_ids),
        "n_distinct": found.n_distinct,
        "score": found.scores.plain,
        "basis": "plain",
        "random_score": plain and plain[0],
        "random_score_spread": plain and plain[1],
        "plain_score": found.scores.plain,
        "random_plain_score": plain and plain[0],
        "random_plain_score_spread": plain and plain[1],
        "covering_radius": found.scores.radius,
        "random_covering_radius": found.random[0].radius,
        "model_id": found.model_id,
        "images": found.image_ids,
    }
