"""The command `visdiv similar`.

Here: arguments, the table of neighbours. Not here: the search (`workflows/similar.py`).
"""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from visdiv_assets.cli.console import (
    MOST,
    AnyDataset,
    Config,
    Json,
    Sheet,
    clear_errors,
    dataset_called,
    open_project,
    out,
    print_json,
    say,
    visible,
    write_picture,
)
from visdiv_assets.errors import VisdivError

commands = typer.Typer()


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv similar birds owls/17.jpg                    like an image of the dataset, by its id
  visdiv similar birds ~/unknown.jpg -k 5             like any image file
  visdiv similar birds ~/unknown.jpg --sheet out.png
"""
)
def similar(
    name: AnyDataset,
    image: Annotated[
        str, typer.Argument(help="An image's id in the dataset, or an image file.", metavar="IMAGE")
    ],
    k: Annotated[
        int, typer.Option("-k", min=1, max=MOST, metavar="N", help="How many to find.")
    ] = 10,
    sheet: Sheet = None,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Find the images of a dataset that are most similar to an image."""
    with clear_errors():
        from visdiv_assets.embedding.pictures import pictures_of
        from visdiv_assets.embedding.preprocess import Pixels
        from visdiv_assets.workflows.sheets import neighbours_sheet
        from visdiv_assets.workflows.similar import decoded, query_from, query_in, similar_images

        project = open_project(config, name)
        dataset = dataset_called(name, project)
        query, data = query_in(dataset.evaluation, project.store, image), b""
        if query is None:
            data = _read_image(image, dataset.name)
            query = query_from(data, dataset.evaluation, project.store, dataset.embedder)
        found = similar_images(dataset.evaluation, project.store, query, k)
        if sheet is not None:
            own: Pixels | None
            if data:
                own = decoded(data, dataset.decoding)
            else:
                pictures = pictures_of(dataset.source, [image], dataset.decoding)
                own = next((picture.pixels for _, _, picture in pictures), None)
            png = neighbours_sheet(own, image, found, dataset.source, dataset.decoding)
            write_picture(sheet, png)
    if json_output:
        print_json([each._asdict() for each in found])
        return
    table = Table()
    table.add_column("similarity", justify="right", no_wrap=True)
    table.add_column("image", overflow="fold")
    for each in found:
        told = "same bytes" if each.exact else f"{each.similarity:.4f}"
        table.add_row(told, Text(visible(each.image_id)))
    out.print(table)
    if sheet is not None:
        say(f"saved {sheet}")


def _read_image(image: str, dataset: str) -> bytes:
    from visdiv_assets.settings.reading import absolute_path
    from visdiv_assets.sources.source import read_limited

    try:
        with absolute_path(image).open("rb") as file:
            return read_limited(file)
    except FileNotFoundError:
        raise VisdivError(f"{image} is neither an image of {dataset} nor a file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VisdivError(f"cannot read {image}: {reason}") from error
