"""The commands about registered datasets: `visdiv init`, `add`, `list`, `history`, `failures` ….

Here: arguments and tables. Not here: editing the file (`settings/editing.py`), reading results
(`warehouse/`).
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from visdiv_assets.cli.console import (
    MOST,
    AnyDataset,
    Chart,
    Config,
    Json,
    Name,
    clear_errors,
    compact_table,
    dataset_called,
    err,
    evaluation_as_json,
    not_nan,
    open_project,
    out,
    print_json,
    rating_text,
    score_text,
    tell_which,
    visible,
    write_picture,
)
from visdiv_assets.errors import VisdivError

SPARKS = "▁▂▃▄▅▆▇█"

commands = typer.Typer()


@commands.command()
def init(config: Config = None) -> None:
    """Create a commented visdiv.yaml."""
    with clear_errors():
        from visdiv_assets.settings.editing import create

        path = config or Path("visdiv.yaml")
        create(path)
    out.print(f"wrote {path}; next: visdiv add NAME SOURCE", markup=False, soft_wrap=True)


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv add birds /data/birds
  visdiv add birds /data/birds --threshold 0.4 --no-watch
  visdiv add shards '/data/shards/{000..099}.tar'
  visdiv add bucket s3://bucket/birds/
  visdiv add test_set /data/test --role benchmark
"""
)
def add(
    name: Name,
    source: Annotated[str, typer.Argument(help="Where its images are.", metavar="SOURCE")],
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            callback=not_nan,
            metavar="SCORE",
            help="Alert below this. Default: 0.30.",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="Score it again when it changes.")
    ] = True,
    schedule: Annotated[
        bool, typer.Option("--schedule/--no-schedule", help="Evaluate it every night.")
    ] = True,
    role: Annotated[
        Literal["training", "benchmark"],
        typer.Option(help="A benchmark's images must not appear in other datasets."),
    ] = "training",
    missing_ok: Annotated[
        bool,
        typer.Option("--missing-ok", help="Register it though it is not there yet.", metavar=""),
    ] = False,
    config: Config = None,
) -> None:
    """Register a dataset, so that Dagster scores it automatically.

    Comments in the file are kept. Files and folders must be there; buckets and servers
    are not asked.
    """
    with clear_errors():
        from visdiv_assets.settings.editing import add_dataset
        from visdiv_assets.settings.reading import absolute_path
        from visdiv_assets.sources.opening import check_exists, open_source
        from visdiv_assets.sources.uris import scheme_of

        path = _settings_file(config)
        options = {
            **({} if threshold is None else {"threshold": threshold}),
            **({} if watch else {"watch": False}),
            **({} if schedule else {"schedule": False}),
            **({} if role == "training" else {"role": role}),
        }
        # A relative folder is relative to where the command runs; in the file, to the file.
        local = not scheme_of(source.removeprefix("file://"))
        place = str(absolute_path(source.removeprefix("file://"))) if local else source
        found = open_source(place)
        if local and not missing_ok:
            try:
                check_exists(found)
            except VisdivError as error:
                raise VisdivError(f"{error}; --missing-ok registers it all the same") from None
        add_dataset(path, name, place, **options)
    out.print(f"{name} is registered in {path}", markup=False, soft_wrap=True)
    if not local:
        err.print(f"nobody has looked there yet; visdiv score {name} does", markup=False)


@commands.command("list")
def list_datasets(json_output: Json = False, config: Config = None) -> None:
    """List the registered datasets and their newest scores."""
    with clear_errors():
        from visdiv_assets.settings.secrets import redacted

        project = open_project(config)
        settings = project.settings
        latest = {each.dataset: each for each in project.warehouse.latest_evaluations()}
    if json_output:
        print_json(
            {
                "datasets": [
                    {
                        "dataset": name,
                        "source": redacted(dataset.source.uri),
                        "threshold": dataset.threshold,
                        "evaluation": evaluation_as_json(latest[name]) if name in latest else None,
                        "error": None,
                    }
                    for name, dataset in settings.datasets.items()
                ]
                + [
                    {
                        "dataset": name,
                        "source": None,
                        "threshold": None,
                        "evaluation": evaluation_as_json(latest[name]) if name in latest else None,
                        "error": fault,
                    }
                    for name, fault in settings.faults.items()
                ]
            }
        )
        return
    if not settings.datasets and not settings.faults:
        err.print("no datasets are registered; visdiv add NAME SOURCE adds one")
        return
    table = compact_table()
    table.add_column("dataset", overflow="fold")
    for heading in ("score\nas it is", "corrected\n95 %", "threshold", "images"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("evaluated\n(UTC)", no_wrap=True)
    table.add_column("source", overflow="fold")
    for name, dataset in settings.datasets.items():
        newest = latest.get(name)
        score, plain, count, when = "", "", "", "never"
        if newest is not None:
            # The one that the threshold is for has a colour.
            colour = "green" if (newest.judged_score or 0.0) >= dataset.threshold else "red"
            score, plain = score_text(newest), f"{newest.diversity_score:.4f}"
            if newest.basis == "plain":
                plain = f"[{colour}]{plain}[/]"
            elif newest.judged_score is not None:
                score = f"[{colour}]{score}[/]"
            count, when = f"{newest.n_images:,}", f"{newest.evaluated_at:%Y-%m-%d\n%H:%M}"
        source = visible(redacted(dataset.source.uri)).replace("[", "\\[")
        table.add_row(name, plain, score, f"{dataset.threshold:.2f}", count, when, source)
    for name, fault in settings.faults.items():
        told = Text(visible(redacted(fault)), style="red")
        table.add_row(Text(visible(name)), "", "", "", "", "", told)
    out.print(table)


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv remove birds
  visdiv remove birds --purge      and delete what the store has of it
  visdiv remove --gone"""
)
def remove(
    name: Annotated[
        str | None, typer.Argument(help="Name of a registered dataset.", metavar="NAME")
    ] = None,
    gone: Annotated[
        bool,
        typer.Option(
            "--gone",
            help="Confirm that datasets which visdiv.yaml no longer has are meant to go. Dagster "
            "keeps them while most of all datasets are gone at once.",
        ),
    ] = False,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="Also delete its list of images, indexes, moments and pictures. Its scores stay. "
            "Embeddings go with `visdiv store gc`, unless another dataset has the same images.",
        ),
    ] = False,
    config: Config = None,
) -> None:
    """Unregister a dataset; its history is kept."""
    with clear_errors():
        from visdiv_assets.settings.editing import remove_dataset
        from visdiv_assets.store.cleaning import forget
        from visdiv_assets.warehouse.state.registry import confirm_removal, registered_at

        if (name is None) != gone:
            raise VisdivError("name one dataset, or use --gone, and not both")
        if purge and gone:
            raise VisdivError("--purge is for one dataset; name it")
        path = _settings_file(config)
        project = open_project(path)
        if name is None:
            kept = {*project.settings.datasets, *project.settings.faults}
            names = sorted(registered_at(project.state).keys() - kept)
        else:
            if not purge or name in {*project.settings.datasets, *project.settings.faults}:
                remove_dataset(path, name)
            elif name not in project.store.datasets():
                raise VisdivError(f"{name} is not registered, and the store has nothing of it")
            names = [name]
        confirm_removal(project.state, names)
        freed = forget(project.store, name) if purge and name is not None else 0
    if name is None:
        told = ", ".join(names) or "no dataset"
        out.print(f"meant to go: {told}", markup=False)
    else:
        out.print(f"{name} is no longer registered; its history is kept", markup=False)
    if purge:
        out.print(f"{decimal(freed)} were deleted", markup=False)


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv history birds
  visdiv history birds --plot birds.png
"""
)
def history(
    name: AnyDataset,
    plot: Chart = None,
    limit: Annotated[
        int, typer.Option(min=1, max=MOST, metavar="N", help="Print this many, the newest.")
    ] = 20,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Print a dataset's evaluations, oldest first, and a sparkline of the scores."""
    with clear_errors():
        project = open_project(config, name)
        name = dataset_called(name, project).name
        evaluations = project.warehouse.history(name)
        if plot is not None:
            from visdiv_assets.report.charts import history_png

            write_picture(plot, history_png(name, evaluations))
    if json_output:
        shown = evaluations[-limit:]
        print_json({"dataset": name, "evaluations": [evaluation_as_json(each) for each in shown]})
        return
    table = compact_table()
    table.add_column("evaluated (UTC)", no_wrap=True)
    for heading in ("images", "failed", "score\nas it is", "corrected\n95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("rating", no_wrap=True)
    for each in evaluations[-limit:]:
        table.add_row(
            f"{each.evaluated_at:%Y-%m-%d %H:%M}",
            f"{each.n_images:,}",
            f"{each.n_failed:,}",
            f"[bold]{each.diversity_score:.4f}[/]",
            f"[bold]{score_text(each)}[/]",
            rating_text(each),
        )
    out.print(table)
    basis = evaluations[-1].basis
    scores = [
        each.judged_score
        for each in evaluations
        if each.basis == basis
        and each.judged_score is not None
        and (basis == "plain" or each.estimated_like(evaluations[-1]))
    ]
    if scores:
        span = f"{min(scores):.4f} to {max(scores):.4f}"
        out.print(f"{sparkline(scores[-60:])}  {basis} score, {span}")
    models = len({each.model_id for each in evaluations})
    if models > 1:
        err.print(f"Note: these scores come from {models} different models and cannot be compared.")
    ways = len({(each.estimator, each.sampling_unit) for each in evaluations if each.estimator})
    if ways > 1:
        err.print(f"Note: corrected scores were estimated in {ways} ways; compare those of one.")
    if plot is not None:
        out.print(f"saved {plot}", markup=False, soft_wrap=True)


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv failures birds
  visdiv failures birds --paths > broken.txt
"""
)
def failures(
    name: AnyDataset,
    limit: Annotated[
        int,
        typer.Option(min=0, max=MOST, metavar="N", help="Print this many; 0 for all of them."),
    ] = 20,
    paths: Annotated[
        bool,
        typer.Option(
            "--paths", help="Print only the names of the images, one per line.", metavar=""
        ),
    ] = False,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """List the images that could not be embedded, with reasons."""
    with clear_errors():
        from visdiv_assets.quality.verdicts import count_reasons
        from visdiv_assets.settings.secrets import redacted
        from visdiv_assets.workflows.project import dataset_at

        project = open_project(config, name)
        tell_which(name, project.settings)
        # Where no image can be embedded, there are failures without an evaluation.
        of_place, _ = dataset_at(name, project.settings)
        failed = project.warehouse.failures(of_place)
        name = of_place if failed else project.dataset_at(name).name
        failed = failed or project.warehouse.failures(name)
    if json_output:
        listed = [dataclasses.asdict(image) for image in failed[: limit or None]]
        print_json({"dataset": name, "n_failed": len(failed), "failures": listed})
        return
    if paths:
        for image in failed:
            print(visible(image.image_id))
        return
    if not failed:
        out.print(f"every image of {name} could be embedded", markup=False)
        return
    table = Table()
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    reasons = [
        redacted(f"{image.exception}: {image.reason}" if image.exception else image.reason)
        for image in failed
    ]
    for reason, count in count_reasons(reasons):
        table.add_row(f"{count:,}", Text(visible(reason)))
    out.print(table)
    shown = failed[: limit or len(failed)]
    for image, reason in zip(shown, reasons, strict=False):
        size = "" if image.bytes is None else f" ({image.bytes:,} bytes)"
        out.print(Text(f"{visible(image.image_id)}{size}: {visible(reason)}"), soft_wrap=True)
    if len(shown) < len(failed):
        out.print(f"… and {len(failed) - len(shown):,} more; --limit 0 lists them all")


@commands.command()
def schema() -> None:
    """Print the JSON Schema of visdiv.yaml, for editors."""
    from visdiv_assets.settings.editing import json_schema

    print(json_schema())


def sparkline(values: list[float]) -> str:
    """A bar for each value, between the least and the greatest of them.

    Example:
        >>> sparkline([0.1, 0.2, 0.3])
        '▁▅█'
    """
    low, high = min(values), max(values)
    if high == low:
        return SPARKS[3] * len(values)
    top = len(SPARKS) - 1
    return "".join(SPARKS[int((value - low) / (high - low) * top + 0.5)] for value in values)


def _settings_file(config: Path | None) -> Path:
    from visdiv_assets.settings.reading import find_settings

    path = config or find_settings()
    if path is None:
        raise VisdivError("there is no visdiv.yaml here; run `visdiv init` to create one")
    return path
