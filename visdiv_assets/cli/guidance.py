"""The commands that say what and why: `visdiv axes`, `augment`, `acquire`.

Here: arguments, progress, tables. Not here: any computation (`workflows/`, modules of the
same names).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from visdiv_assets.cli.console import (
    EXIT_INTERRUPTED,
    AnyDataset,
    Chart,
    Config,
    Json,
    Sheet,
    clear_errors,
    dataset_called,
    err,
    open_project,
    out,
    print_json,
    visible,
    write_picture,
)
from visdiv_assets.cli.progress import counted
from visdiv_assets.errors import VisdivError

if TYPE_CHECKING:
    from visdiv_assets.warehouse.records import Evaluation
    from visdiv_assets.workflows.acquire import Acquisition
    from visdiv_assets.workflows.augment import Measured
    from visdiv_assets.workflows.axes import DatasetAxes
    from visdiv_assets.workflows.project import Project

# From this width on, there is room to say what each augmentation does.
DESCRIBED_WIDTH = 110

commands = typer.Typer()


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv axes birds                        what dominates, in words
  visdiv axes birds --sheet axes.png       and the images at both ends of each axis
  visdiv axes birds -n 3 --json
"""
)
def axes(
    name: AnyDataset,
    count: Annotated[int, typer.Option("-n", min=1, max=50, metavar="N", help="Axes to show.")] = 5,
    sheet: Sheet = None,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Describe what dominates a dataset: its largest contrasts, and what all images share."""
    with clear_errors():
        from visdiv_assets.guidance.axes import describe
        from visdiv_assets.report.sheets import contact_sheet_png
        from visdiv_assets.workflows.axes import axes_of, axes_sheet, record_axes

        project = open_project(config, name)
        dataset = dataset_called(name, project)
        evaluation = dataset.evaluation
        if sheet:
            _ = dataset.source  # refused before the work begins
        with err.status("looking"):
            found = axes_of(evaluation, project.store, count=count)
            record_axes(found, project.warehouse)
            if sheet:
                rows = axes_sheet(found, dataset.source, dataset.decoding)
                write_picture(sheet, contact_sheet_png(rows))
    said = describe(found.axes)
    if json_output:
        print_json(_axes_as_json(found, said))
        return
    _print_axes(found)
    for sentence in said:
        out.print(visible(sentence), markup=False)
    if sheet:
        err.print(f"saved {sheet}", markup=False, soft_wrap=True)
    else:
        err.print("--sheet FILE.png draws the images at the ends of each axis")


def _print_axes(found: "DatasetAxes") -> None:
    table = Table()
    for heading in ("axis", "of all variation"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("side A, farthest out", "side B, farthest out"):
        table.add_column(heading, overflow="fold")
    for axis in found.axes.axes:
        ends = [
            "\n".join(visible(found.image_ids[int(row)]) for row in end.rows[:3])
            for end in axis.ends
        ]
        table.add_row(f"{axis.number}", f"{axis.share * 100:.1f} %", *map(Text, ends))
    out.print(table)


def _axes_as_json(found: "DatasetAxes", said: Sequence[str]) -> dict[str, object]:
    return {
        "dataset": found.evaluation.dataset,
        "n_images": found.axes.n,
        "shared": found.axes.shared,
        "axes": [
            {
                "axis": axis.number,
                "share": axis.share,
                "between_slices": axis.between,
                "sides": {
                    side: {
                        "images": [found.image_ids[int(row)] for row in end.rows],
                        "likeness": end.likeness,
                        "share_of_images": end.beyond,
                        "slice": placed.name if (placed := axis.slice_at(side)) else None,
                    }
                    for side, end in zip("AB", axis.ends, strict=True)
                },
            }
            for axis in found.axes.axes
        ],
        "in_words": list(said),
        "model_id": found.evaluation.model_id,
    }


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv augment birds                                    the whole catalogue, on 200 images
  visdiv augment birds --sample 800                       narrower intervals, four times as long
  visdiv augment birds --only flip,crop --sheet look.png  some, and what they look like
"""
)
def augment(
    name: AnyDataset,
    sample: Annotated[
        int,
        typer.Option(min=53, max=2000, metavar="N", help="Images to try them on, 53 to 2,000."),
    ] = 200,
    only: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Only these; crop includes crop-mild. Default: all."),
    ] = None,
    sheet: Sheet = None,
    chart: Chart = None,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Measure which augmentations would add diversity to a dataset.

    Embeds augmented copies of a sample of images. Only the measurements are kept.
    """
    with clear_errors():
        from visdiv_assets.embedding.augmentations import CATALOGUE, chosen
        from visdiv_assets.guidance.augmentation import advise
        from visdiv_assets.report.charts import effects_png
        from visdiv_assets.report.sheets import contact_sheet_png
        from visdiv_assets.workflows.augment import (
            augmentations_sheet,
            measure_augmentations,
            record_augmentations,
            sample_images,
        )

        augmentations = CATALOGUE if only is None else chosen(only.split(","))
        project = open_project(config, name)
        dataset = dataset_called(name, project)
        evaluation, embedder = dataset.evaluation, dataset.embedder()
        images = sample_images(evaluation, project.store, dataset.source, dataset.decoding, sample)
        measured: list[Measured] = []
        try:
            with counted(name) as on_progress:
                for each in measure_augmentations(images, embedder, augmentations, on_progress):
                    measured.append(each)  # one by one, so that Ctrl-C leaves what is done
        except KeyboardInterrupt:
            if not json_output and measured:
                _print_effects(measured)
            err.print(_given_up(len(measured), len(augmentations), json_output))
            raise typer.Exit(EXIT_INTERRUPTED) from None
        record_augmentations(measured, evaluation, project.warehouse)
        if sheet:
            write_picture(sheet, contact_sheet_png(augmentations_sheet(images, measured)))
        effects = {each.augmentation.name: each.effect for each in measured}
        if chart:
            write_picture(chart, effects_png(effects))
    said = advise(effects)
    if json_output:
        print_json(_effects_as_json(evaluation, measured, said))
        return
    _print_effects(measured)
    for sentence in said:
        out.print(sentence, markup=False)


def _given_up(done: int, total: int, json_output: bool) -> str:
    """What an interrupted measurement leaves: nothing is recorded before all are measured."""
    shown = "" if json_output or not done else ", which are shown above"
    return (
        f"interrupted after {done:,} of {total:,} augmentations{shown}; nothing was recorded, and "
        "the same command begins anew"
    )


def _print_effects(measured: "Sequence[Measured]") -> None:
    from visdiv_assets.guidance.augmentation import more_than_chance, verdict

    sure = more_than_chance({each.augmentation.name: each.effect for each in measured})
    table = Table()
    table.add_column("augmentation", no_wrap=True)
    for heading in ("change", "95 %", "cosine"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    described = out.width >= DESCRIBED_WIDTH
    if described:
        table.add_column("what it does", overflow="fold")
    for each in sorted(measured, key=lambda each: -each.effect.change):
        name, effect = each.augmentation.name, each.effect
        word = verdict(effect, sure=name in sure)
        told = not math.isnan(effect.change)
        colour = {"adds": "green", "takes away": "red"}.get(word, "default")
        table.add_row(
            name,
            f"{effect.change * 100:+.1f} %" if told else "",
            f"{effect.low * 100:+.1f} to {effect.high * 100:+.1f}" if told else "",
            f"{effect.similarity:.2f}",
            f"[{colour}]{word}[/]",
            *([each.augmentation.what] if described else []),
        )
    out.print(table)
    out.print(
        f"'change' of the corrected score when one augmented copy of each image is added, tried on "
        f"{measured[0].effect.n:,} images. 'cosine' of an image and its copy: near 1, SSCD cannot "
        "see the difference."
    )


def _effects_as_json(
    evaluation: "Evaluation", measured: "Sequence[Measured]", said: Sequence[str]
) -> dict[str, object]:
    from visdiv_assets.guidance.augmentation import more_than_chance, verdict

    sure = more_than_chance({each.augmentation.name: each.effect for each in measured})
    return {
        "dataset": evaluation.dataset,
        "n_images": measured[0].effect.n,
        "augmentations": [
            {
                "augmentation": each.augmentation.name,
                "change": each.effect.change,
                "low": each.effect.low,
                "high": each.effect.high,
                "similarity": each.effect.similarity,
                "verdict": verdict(each.effect, sure=each.augmentation.name in sure),
            }
            for each in measured
        ],
        "in_words": list(said),
        "model_id": evaluation.model_id,
    }


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv acquire birds              which of all other registered datasets to add, and how much
  visdiv acquire birds cars faces   of these only
"""
)
def acquire(
    name: AnyDataset,
    others: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OTHER]...",
            help="Default: all registered datasets of the same model, except benchmarks.",
        ),
    ] = None,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Find which other dataset to add to one, and how many of its images."""
    with clear_errors():
        from visdiv_assets.workflows.acquire import acquisitions_of, record_acquisitions

        project = open_project(config, name, *(others or ()))
        store, warehouse = project.store, project.warehouse
        name = dataset_called(name, project).name
        chosen = _others(name, others, project)
        with err.status("searching"):
            evaluation, found = acquisitions_of(name, chosen, store, warehouse)
            record_acquisitions(evaluation, found, warehouse)
    if json_output:
        print_json({"dataset": name, "others": [_acquisition_as_json(e) for e in found]})
        return
    table = Table()
    table.add_column("dataset", overflow="fold")
    for heading in ("add", "of", "share", "score then", "95 %", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for each in found:
        fair = each.corrected
        table.add_row(
            visible(each.other),
            f"{each.n_images:,}",
            f"{each.n_available:,}",
            f"{each.share * 100:.0f} %",
            "too few" if fair.too_few else f"{fair.score:.3f}",
            "" if fair.too_few else f"{fair.low:.3f}–{fair.high:.3f}",
            "" if fair.too_few else f"{each.gain * 100:+.1f} %",
            "" if not each.n_images else "more than chance" if each.sure else "may be chance",
        )
    out.print(table)
    out.print(
        f"{name} scores {evaluation.corrected_score:.3f} now. 'add': how many images of the other "
        f"make the two most diverse, with all {evaluation.n_images:,} images of {name} kept.",
        markup=False,
    )


def _others(name: str, others: list[str] | None, project: "Project") -> list[str]:
    """Those named, or all that can be mixed; benchmarks are not to be trained on."""
    datasets = project.settings.datasets
    benchmarks = {key for key, each in datasets.items() if each.role == "benchmark"}
    if others:
        named = [dataset_called(other, project).name for other in others]
        for other in named:
            if other == name:
                raise VisdivError(f"{name} cannot be added to itself")
            if other in benchmarks:
                raise VisdivError(
                    f"{other} is a benchmark, so its images must not be added to others"
                )
        return named
    latest = {each.dataset: each for each in project.warehouse.latest_evaluations()}
    own = latest.get(name)
    return [
        other
        for other in datasets
        if other in latest
        and other != name
        and other not in benchmarks
        and (own is None or latest[other].model_id == own.model_id)
    ]


def _acquisition_as_json(each: "Acquisition") -> dict[str, object]:
    return {
        "dataset": each.other,
        "share": each.share,
        "add": each.n_images,
        "available": each.n_available,
        "corrected_score": each.corrected.score,
        "corrected_low": each.corrected.low,
        "corrected_high": each.corrected.high,
        "change": each.gain,
        "sure": each.sure,
    }
