"""The command `visdiv score`.

Here: arguments, the table or JSON of scores, images that failed. Not here: evaluating
(`workflows/evaluate.py`).
"""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import DownloadColumn, TaskID
from rich.text import Text

from visdiv_assets.cli.console import (
    EXIT_BELOW,
    EXIT_ERROR,
    Config,
    clear_errors,
    err,
    evaluation_as_json,
    not_nan,
    open_project,
    print_error,
    print_evaluations,
    print_json,
    tell_which,
    visible,
)
from visdiv_assets.cli.progress import of_images, progress_bar
from visdiv_assets.errors import VisdivError, counted
from visdiv_assets.settings.secrets import redacted

if TYPE_CHECKING:
    from visdiv_assets.embedding.embedder import SSCDEmbedder
    from visdiv_assets.embedding.pipeline import Embedder, OnProgress
    from visdiv_assets.embedding.preprocess import Decoding
    from visdiv_assets.settings.model import (
        DatasetSettings,
        EmbedderSettings,
        SamplingUnit,
        Settings,
        SourceSettings,
    )
    from visdiv_assets.sources.manifest import Manifest
    from visdiv_assets.sources.names import LeftOut
    from visdiv_assets.sources.source import Source
    from visdiv_assets.store.index import EmbeddingIndex
    from visdiv_assets.warehouse.records import Evaluation
    from visdiv_assets.workflows.engine import Engine
    from visdiv_assets.workflows.evaluate import Embedded
    from visdiv_assets.workflows.project import Project

FAILURES_SHOWN = 10

commands = typer.Typer()


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv score ~/photos                               score a folder
  visdiv score ~/photos --json | jq .score            for scripts
  visdiv score s3://bucket/all/ --precision 0.01      a large set, from a sample
  visdiv score ~/photos --fail-under 0.3              for CI
  visdiv score ~/clips --sampling-unit folder         frames of one clip are one piece of evidence
  visdiv score --config my.yaml                       all datasets of a file
  visdiv score photos --config my.yaml                one of them; ./photos is the folder

[bold]Exit codes[/]

  0 scored   1 error   2 wrong usage   3 below --fail-under   130 interrupted
"""
)
def score(
    path: Annotated[
        str | None,
        typer.Argument(
            help="A folder or another source of images, or the name of a dataset in the settings. "
            "Default: all datasets in the settings.",
            metavar="PATH",
        ),
    ] = None,
    config: Config = None,
    precision: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=0.5,
            callback=not_nan,
            help="Score a random sample, just large enough to know the corrected score to "
            "within plus or minus this.",
            metavar="HALF-WIDTH",
        ),
    ] = None,
    sampling_unit: Annotated[
        str | None,
        typer.Option(
            help="What counts as one piece of evidence: near-duplicates (the default), row, "
            "folder, or column=NAME.",
            metavar="UNIT",
        ),
    ] = None,
    reread: Annotated[
        bool,
        typer.Option(
            "--reread",
            help="Read every image again, for sources where images change without a change of "
            "size or time. Only what has really changed is embedded.",
            metavar="",
        ),
    ] = False,
    json_output: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object for each dataset.", metavar=""),
    ] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            callback=not_nan,
            help="Exit with code 3 if a score is below this, or cannot be told.",
            metavar="SCORE",
        ),
    ] = None,
) -> None:
    """Score the visual diversity of a set of images.

    Embeddings are kept, so a second run embeds only new images. You can stop it
    with Ctrl-C and continue later.
    """
    with clear_errors(
        "interrupted; finished embeddings are kept, run the same command to continue"
    ):
        from visdiv_assets.sources.names import left_out_of
        from visdiv_assets.sources.opening import open_source
        from visdiv_assets.workflows.engines import engine_of
        from visdiv_assets.workflows.order import order_of, told
        from visdiv_assets.workflows.project import decoding_of

        # Of all datasets, a faulty one is one that could not be scored.
        project = open_project(config, *([path] if path else []), tell=path is not None)
        settings = project.settings
        unit = _sampling_unit(sampling_unit)
        targets = _targets(path, settings)
        evaluations: list[Evaluation] = []
        embedders: dict[str, SSCDEmbedder] = {}
        faults = settings.faults.values() if path is None else ()
        failed = bool(faults)
        for fault in faults:
            print_error(fault)
        try:
            for name, source in targets:
                registered = settings.datasets.get(name)
                opened = None
                try:
                    configured = settings.embedder_of(name)
                    # The model is loaded once for all datasets that share it.
                    key = configured.model_dump_json()
                    embedder = embedders[key] = embedders.get(key) or load_embedder(
                        configured, decoding_of(settings, name)
                    )
                    opened = open_source(source)
                    with of_images(name) as on_progress:
                        evaluation, embedded = evaluate_as_set(
                            project,
                            name,
                            opened,
                            embedder,
                            sampling_unit=unit,
                            precision=precision or _precision_of(registered),
                            reread=reread,
                            engine=engine_of(settings, name, source),
                            on_progress=on_progress,
                        )
                except VisdivError as error:
                    print_error(str(error))
                    print_left_out(name, left_out_of(opened), but_in=str(error))
                    failed = True
                    continue
                evaluations.append(evaluation)
                left_out = left_out_of(opened)
                if json_output:
                    shown = {**evaluation_as_json(evaluation), "left_out": left_out.as_dict()}
                    print_json(shown)
                print_left_out(name, left_out)
                print_failures(embedded.index)
                print_flat(embedded.index)
                print_order(name, told(order_of(evaluation, project.store)))
        finally:
            if evaluations and not json_output:
                print_evaluations(evaluations)
    below = [
        each
        for each in evaluations
        if fail_under is not None and (each.judged_score is None or each.judged_score < fail_under)
    ]
    for evaluation in below:
        verdict = "is below" if evaluation.judged_score is not None else "has too few images for"
        err.print(f"{evaluation.dataset} {verdict} the required score {fail_under}", style="red")
    if failed:
        raise typer.Exit(EXIT_ERROR)
    if below:
        raise typer.Exit(EXIT_BELOW)


def _targets(path: str | None, settings: "Settings") -> "list[tuple[str, SourceSettings]]":
    """Name and source of each dataset to score."""
    if path is None:
        if not settings.datasets and not settings.faults:
            raise VisdivError("name a source to score, or register datasets with visdiv add")
        return [(name, dataset.source) for name, dataset in settings.datasets.items()]
    if not path:
        raise VisdivError("the name of the source to score is empty")
    from visdiv_assets.workflows.project import dataset_at

    tell_which(path, settings)
    return [dataset_at(path, settings)]


def load_embedder(configured: "EmbedderSettings", decoding: "Decoding") -> "SSCDEmbedder":
    """What embeds, with the progress of a download; its model is loaded later."""
    from visdiv_assets.embedding.embedder import SSCDEmbedder

    progress = progress_bar("downloading the SSCD weights", DownloadColumn())
    task: TaskID | None = None

    def on_download(done: int, total: int | None) -> None:
        nonlocal task
        if task is None:
            progress.start()
            task = progress.add_task("", total=total)
        progress.update(task, completed=done, total=total)

    try:
        return SSCDEmbedder(
            weights=configured.weights,
            device=configured.device,
            batch_size=configured.batch_size,
            precision=configured.precision,
            decoding=decoding,
            on_download=on_download,
        )
    finally:
        progress.stop()


def evaluate_as_set(
    project: "Project",
    name: str,
    source: "Source",
    embedder: "Embedder",
    *,
    sampling_unit: "SamplingUnit | None" = None,
    precision: float | None = None,
    reread: bool = False,
    manifest: "Manifest | None" = None,
    engine: "Engine | None" = None,
    on_progress: "OnProgress | None" = None,
) -> "tuple[Evaluation, Embedded]":
    """`evaluate` as the settings say; a dataset that is not registered has no threshold."""
    from visdiv_assets.workflows.evaluate import evaluate

    registered = project.settings.datasets.get(name)
    return evaluate(
        name,
        source,
        embedder,
        project.store,
        project.warehouse,
        threshold=registered.threshold if registered else None,
        basis=registered.basis if registered else "corrected",
        recovery=project.recovery,
        slices=registered.slices if registered else None,
        sampling_unit=sampling_unit or _unit_of(registered),
        precision=precision,
        reread=reread,
        manifest=manifest,
        engine=engine,
        on_progress=on_progress,
    )


def _sampling_unit(text: str | None) -> "SamplingUnit | None":
    """What was asked for; None if nothing was."""
    from visdiv_assets.settings.model import ColumnSlices

    name, mark, column = (text or "").partition("=")
    if mark and name == "column" and column:
        return ColumnSlices(column=column)
    if text in ("near-duplicates", "row", "folder", None):
        return text  # type: ignore[return-value]
    raise typer.BadParameter(
        "use near-duplicates, row, folder, or column=NAME", param_hint="--sampling-unit"
    )


def _unit_of(registered: "DatasetSettings | None") -> "SamplingUnit":
    return registered.sampling_unit if registered else "near-duplicates"


def _precision_of(registered: "DatasetSettings | None") -> float | None:
    return registered.sample.precision if registered and registered.sample else None


def print_left_out(name: str, left_out: "LeftOut", but_in: str = "") -> None:
    """One line about files that were not taken for images, unless it was told before."""
    told = str(left_out)
    if told and told not in but_in:
        err.print(Text(visible(f"{name}: {told}; `include` can take them")), soft_wrap=True)


def print_failures(index: "EmbeddingIndex") -> None:
    """The images that could not be embedded, and why; on a terminal the first of them."""
    if not index.n_failed:
        return
    err.print(f"{counted(index.n_failed, 'image')} could not be embedded:")
    shown = FAILURES_SHOWN if err.is_terminal else index.n_failed
    for image_id, reason in index.failures()[:shown]:
        err.print(Text(f"  {visible(image_id)}: {visible(redacted(reason))}"), soft_wrap=True)
    if index.n_failed > shown:
        err.print(f"  … and {index.n_failed - shown:,} more; 2> failures.txt keeps them all")


def print_order(name: str, warning: str) -> None:
    """A warning about the order of the images, if there is one."""
    if warning:
        err.print(Text(visible(f"{name}: {warning}")), soft_wrap=True)


def print_flat(index: "EmbeddingIndex") -> None:
    """The pictures that are of one colour."""
    flat = index.flat()
    if not flat:
        return
    pictures = "1 picture is" if len(flat) == 1 else f"{len(flat):,} pictures are"
    err.print(f"{pictures} one flat colour, so there is nothing to see in:")
    shown = FAILURES_SHOWN if err.is_terminal else len(flat)
    for image_id in flat[:shown]:
        err.print(Text(f"  {visible(image_id)}"), soft_wrap=True)
    if len(flat) > shown:
        err.print(f"  … and {len(flat) - shown:,} more; 2> flat.txt keeps them all")
