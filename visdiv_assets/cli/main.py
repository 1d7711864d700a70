"""The command `visdiv`.

Here: arguments, progress, tables, exit codes. Not here: any work; heavy modules are imported by
the command that needs them.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
)
from rich.text import Text

from visdiv_assets import __version__
from visdiv_assets.cli.console import (
    EXIT_BELOW,
    EXIT_ERROR,
    PROGRESS_SECONDS,
    Config,
    clear_errors,
    dataset_at,
    err,
    opened,
    out,
    print_error,
    print_evaluations,
    progress_bar,
    visible,
)
from visdiv_assets.cli.datasets import commands
from visdiv_assets.cli.duplicates import commands as redundancy
from visdiv_assets.cli.guidance import commands as advice
from visdiv_assets.cli.portfolio import commands as portfolio
from visdiv_assets.cli.select import commands as selection
from visdiv_assets.errors import VisdivError

if TYPE_CHECKING:
    from visdiv_assets.embedding.embedder import SSCDEmbedder
    from visdiv_assets.embedding.pipeline import OnProgress
    from visdiv_assets.embedding.preprocess import Decoding
    from visdiv_assets.settings.model import (
        DatasetSettings,
        EmbedderSettings,
        Settings,
        SourceSettings,
    )
    from visdiv_assets.store.index import EmbeddingIndex
    from visdiv_assets.warehouse.warehouse import Evaluation

FAILURES_SHOWN = 10

app = typer.Typer(
    name="visdiv",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(commands)
app.add_typer(portfolio)
app.add_typer(redundancy)
app.add_typer(selection)
app.add_typer(advice)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"visdiv {__version__}")
        raise typer.Exit


@app.callback(
    epilog="""[bold]Examples[/]

  visdiv score ~/photos        score a folder
  visdiv score --help          more of them
  visdiv doctor                is everything as it should be?
"""
)
def visdiv(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            metavar="",
            help="Show the version.",
        ),
    ] = False,
) -> None:
    """Measure the visual diversity of image datasets, as FineVision does."""


@app.command(
    epilog="""[bold]Examples[/]

  visdiv score ~/photos                               score a folder
  visdiv score ~/photos --json | jq .corrected_score  for scripts
  visdiv score s3://bucket/all/ --precision 0.01      a large set, from a sample
  visdiv score ~/photos --fail-under 0.3              for CI
  visdiv score --config my.yaml                       all datasets of a file
  visdiv score photos --config my.yaml                one of them

[bold]Exit codes[/]

  0 scored   1 error   2 wrong usage   3 below --fail-under   130 interrupted
"""
)
def score(
    path: Annotated[
        str | None,
        typer.Argument(
            help="A folder or another source of images, or the name of a dataset in the settings. "
            "Left out: all datasets of the settings.",
            metavar="PATH",
        ),
    ] = None,
    config: Config = None,
    precision: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=0.5,
            help="Look at a random sample only, as large as it takes to know the corrected "
            "score to plus or minus this.",
            metavar="HALF-WIDTH",
        ),
    ] = None,
    json_output: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object for each dataset.", metavar=""),
    ] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Exit with code 3 when a score is lower than this, or cannot be told.",
            metavar="SCORE",
        ),
    ] = None,
) -> None:
    """Score the visual diversity of a set of images.

    Embeddings are kept, so a second call embeds only what is new.
    Ctrl-C loses next to nothing.
    """
    with clear_errors():
        from visdiv_assets.sources.opening import open_source
        from visdiv_assets.workflows.evaluate import decoding_of, evaluate

        settings, store, warehouse = opened(config)
        targets = _targets(path, settings)
        evaluations: list[Evaluation] = []
        embedders: dict[str, SSCDEmbedder] = {}
        failed = False
        try:
            for name, source in targets:
                registered = settings.datasets.get(name)
                try:
                    configured = settings.embedder_of(name)
                    # The model is loaded once for all datasets that share it.
                    key = configured.model_dump_json()
                    embedder = embedders[key] = embedders.get(key) or _embedder(
                        configured, decoding_of(settings, name)
                    )
                    with _image_progress(name) as on_progress:
                        evaluation, embedded = evaluate(
                            name,
                            open_source(source),
                            embedder,
                            store,
                            warehouse,
                            threshold=registered.threshold if registered else None,
                            basis=registered.basis if registered else "corrected",
                            slices=registered.slices if registered else None,
                            precision=precision or _precision_of(registered),
                            on_progress=on_progress,
                        )
                except VisdivError as error:
                    print_error(str(error))
                    failed = True
                    continue
                evaluations.append(evaluation)
                if json_output:
                    print(json.dumps(_as_json(evaluation)), flush=True)
                _print_failures(embedded.index)
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


@app.command()
def demo(config: Config = None) -> None:
    """Score two demo datasets through Dagster.

    Diverse photographs, and near-identical frames. Needs a checkout of the project.
    """
    with clear_errors():
        from visdiv_assets.settings.model import find_settings, load_settings
        from visdiv_assets.warehouse.warehouse import Warehouse

        path = config or find_settings()
        if path is None:
            raise VisdivError("there is no visdiv.yaml here; run the demo in a checkout of visdiv")
        settings = load_settings(path)
        with err.status("starting Dagster") as status:
            from visdiv_assets.cli.demo import PHOTOS, TRACKING, run_demo  # dagster: 3 seconds

            for name in run_demo(path):
                status.update(f"materialising {name}")
        latest = {
            evaluation.dataset: evaluation
            for evaluation in Warehouse(settings.store / "visdiv.duckdb").latest_evaluations()
        }
    print_evaluations([latest[PHOTOS], latest[TRACKING]])
    out.print(
        "\n213 different photographs are diverse, though few: the score is corrected for that.\n"
        "300 frames of three scenes are nearly one image each, and the score shows it.\n\n"
        "What next:\n"
        "  [bold]make dev[/]                    look at both in Dagster, http://localhost:3000\n"
        "  [bold].venv/bin/visdiv score DIR[/]  score a folder of your own\n"
        "  [bold]visdiv.yaml[/]                 register your datasets",
        soft_wrap=True,
    )


@app.command()
def doctor(config: Config = None) -> None:
    """Check installation, devices, model and store.

    Exit code 1 when something is wrong.
    """
    with clear_errors():
        from visdiv_assets.settings.model import load_settings

        settings = load_settings(config)
        with err.status("looking"):
            from visdiv_assets.cli.doctor import examine  # torch: seconds

            findings = examine(settings)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = "[green]ok     [/]" if finding.ok else "[red]problem[/]"
        detail = Text(f" {finding.subject:<{width}}  {visible(finding.detail)}")
        out.print(mark, detail, sep="", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_ERROR)


def main() -> None:
    """The entry point of the command."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Warnings()])
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # stars, where the terminal has none
    app()


class _Warnings(logging.Handler):
    """Shows warnings above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print("[yellow]warning:[/]", Text(visible(record.getMessage())), soft_wrap=True)


def _targets(path: str | None, settings: "Settings") -> "list[tuple[str, SourceSettings]]":
    """Name and source of each dataset to score."""
    if path is None:
        if not settings.datasets:
            raise VisdivError("name a source to score; the settings register no datasets")
        return [(name, dataset.source) for name, dataset in settings.datasets.items()]
    if not path:
        raise VisdivError("the name of the source to score is empty")
    return [dataset_at(path, settings)]


def _embedder(configured: "EmbedderSettings", decoding: "Decoding") -> "SSCDEmbedder":
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


@contextmanager
def _image_progress(name: str) -> "Iterator[OnProgress]":
    """A bar on a terminal; in a log, a line now and then."""
    started = said = time.monotonic()

    with progress_bar(name, MofNCompleteColumn(), TextColumn("{task.fields[rate]}")) as progress:
        task = progress.add_task("", total=None, rate="")

        def on_progress(done: int, total: int, embedded: int, bottleneck: str) -> None:
            nonlocal said
            now = time.monotonic()
            rate = f"{embedded / (now - started):.1f} images/s, limit: {bottleneck}"
            progress.update(task, completed=done, total=total, rate=rate)
            if not err.is_terminal and now - said >= PROGRESS_SECONDS:
                said = now
                err.print(f"{name}: {done:,} of {total:,}, {rate}", soft_wrap=True)

        yield on_progress


def _as_json(evaluation: "Evaluation") -> dict[str, object]:
    return {
        "dataset": evaluation.dataset,
        "n_images": evaluation.n_images,
        "n_failed": evaluation.n_failed,
        "dimension": evaluation.dimension,
        "n_listed": evaluation.n_listed,
        "corrected_score": evaluation.corrected_score,
        "corrected_low": evaluation.corrected_low,
        "corrected_high": evaluation.corrected_high,
        "corrected_effective_rank": evaluation.corrected_effective_rank,
        "corrected_participation_ratio": evaluation.corrected_participation_ratio,
        "effective_rank": evaluation.effective_rank,
        "participation_ratio": evaluation.participation_ratio,
        "diversity_score": evaluation.diversity_score,
        "rating": evaluation.rating,
        "stars": evaluation.stars,
        "model_id": evaluation.model_id,
        "seconds": round(evaluation.seconds, 3),
    }


def _precision_of(registered: "DatasetSettings | None") -> float | None:
    return registered.sample.precision if registered and registered.sample else None


def _print_failures(index: "EmbeddingIndex") -> None:
    if not index.n_failed:
        return
    images = "1 image" if index.n_failed == 1 else f"{index.n_failed:,} images"
    err.print(f"{images} could not be embedded:")
    shown = FAILURES_SHOWN if err.is_terminal else index.n_failed
    for image_id, reason in index.failures()[:shown]:
        err.print(Text(f"  {visible(image_id)}: {visible(reason)}"), soft_wrap=True)
    if index.n_failed > shown:
        err.print(f"  … and {index.n_failed - shown:,} more; 2> failures.txt keeps them all")


if __name__ == "__main__":
    main()
