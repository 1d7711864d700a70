"""The commands `visdiv plan`, `embed` and `merge`: one dataset, many processes or machines.

Here: arguments and what is said. Not here: units of work (`workflows/plan.py`), scoring
(`workflows/evaluate.py`).
"""

from typing import TYPE_CHECKING, Annotated

import typer

from visdiv_assets.cli.console import (
    Config,
    Json,
    clear_errors,
    evaluation_as_json,
    open_project,
    out,
    print_evaluations,
    print_json,
    say,
    tell_which,
    visible,
)
from visdiv_assets.cli.progress import of_images
from visdiv_assets.cli.score import (
    evaluate_as_set,
    load_embedder,
    print_failures,
    print_flat,
    print_left_out,
)
from visdiv_assets.errors import VisdivError, counted

if TYPE_CHECKING:
    from pathlib import Path

    from visdiv_assets.embedding.embedder import SSCDEmbedder
    from visdiv_assets.sources.source import Source
    from visdiv_assets.workflows.project import Project

commands = typer.Typer()

Called = Annotated[
    str,
    typer.Argument(
        help="The name of a dataset in the settings, a folder or another source of images.",
        metavar="NAME",
    ),
]


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv plan photos                    list the images, and cut them into units
  visdiv embed photos --units 1/2       in one shell, or on one machine
  visdiv embed photos --units 2/2       in another
  visdiv merge photos                   when both have ended
"""
)
def plan(
    name: Called,
    images: Annotated[
        int,
        typer.Option(
            min=1,
            max=100_000_000,
            help="Images in a unit. Images of one archive or table stay together.",
            metavar="N",
        ),
    ] = 20_000,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Cut a dataset into units of work, for several processes or machines.

    They need the same settings and the same store: a folder that all of them
    see, or a bucket. What the store has already is not planned.
    """
    with clear_errors():
        from visdiv_assets.sources.names import left_out_of
        from visdiv_assets.workflows.evaluate import list_dataset
        from visdiv_assets.workflows.plan import make_plan

        project, dataset, source, embedder = _opened(name, config)
        listed = list_dataset(dataset, source, project.store)
        made = make_plan(dataset, listed, source, embedder, project.store, lambda _: images)
        print_left_out(dataset, left_out_of(source))
    n_planned, n_units = sum(made.sizes), len(made.units)
    if json_output:
        told = {"dataset": dataset, "images": len(listed), "to_embed": n_planned, "units": n_units}
        print_json({**told, "model_id": made.model_id, "fingerprint": made.fingerprint})
        return
    say(
        f"{visible(dataset)}: {counted(len(listed), 'image')}, of which {n_planned:,} are to be "
        f"embedded, in {counted(n_units, 'unit')}"
    )
    if n_units:
        out.print(
            "\nIn each of N processes or jobs, with K from 1 to N, run\n"
            f"  visdiv embed {visible(name)} --units K/N\n"
            f"and when all have ended\n  visdiv merge {visible(name)}",
            markup=False,
            soft_wrap=True,
        )


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv embed photos                                       all units that are left
  visdiv embed photos --units 3/64                          the third of 64 shares of them
  visdiv embed photos --units $((SLURM_ARRAY_TASK_ID+1))/64

[bold]Exit codes[/]

  0 all units of the share are embedded   1 error   2 wrong usage   130 interrupted
"""
)
def embed(
    name: Called,
    units: Annotated[
        str,
        typer.Option(
            help="Which share of the units: 3/64 is the third of 64. Default: all that are left.",
            metavar="K/N",
        ),
    ] = "1/1",
    config: Config = None,
) -> None:
    """Embed units of a plan.

    Finished units are kept. Run it again after an interrupt or a failure: it goes
    on where it was. Running the same share twice does no harm.
    """
    with clear_errors(
        "interrupted; finished embeddings are kept, run the same command to continue"
    ):
        from visdiv_assets.embedding.work import share
        from visdiv_assets.workflows.plan import embed_units, plan_of

        project, dataset, source, embedder = _opened(name, config)
        made = plan_of(dataset, project.store)
        numbers = share(units, len(made.units))
        with of_images(dataset) as on_progress:
            done = embed_units(made, numbers, source, embedder, project.store, on_progress)
    before = f", {done.there:,} already there" if done.there else ""
    failed = f"; {counted(done.failed, 'image')} could not be embedded" if done.failed else ""
    say(
        f"{visible(dataset)}: {counted(done.units, 'unit')} embedded{before}, "
        f"{counted(done.embedded, 'new image')}{failed}"
    )


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv merge photos
  visdiv merge photos --json | jq .score
"""
)
def merge(name: Called, json_output: Json = False, config: Config = None) -> None:
    """Score a dataset whose units are all embedded.

    The result is that of `visdiv score`, of the images that were planned.
    """
    with clear_errors("interrupted; run the same command to continue"):
        from visdiv_assets.store.plans import forget_plan
        from visdiv_assets.workflows.plan import plan_of, planned_images

        project, dataset, source, embedder = _opened(name, config)
        made = plan_of(dataset, project.store)
        images = planned_images(made, project.store)
        with of_images(dataset) as on_progress:
            evaluation, embedded = evaluate_as_set(
                project, dataset, source, embedder, manifest=images, on_progress=on_progress
            )
        forget_plan(project.store, made)
        print_failures(embedded.index)
        print_flat(embedded.index)
    if json_output:
        print_json(evaluation_as_json(evaluation))
    else:
        print_evaluations([evaluation])


def _opened(called: str, config: "Path | None") -> "tuple[Project, str, Source, SSCDEmbedder]":
    """The project, and a dataset's name, source and model."""
    from visdiv_assets.sources.opening import open_source
    from visdiv_assets.workflows.project import dataset_at, decoding_of

    project = open_project(config, called)
    settings = project.settings
    tell_which(called, settings)
    dataset, source = dataset_at(called, settings)
    registered = settings.datasets.get(dataset)
    if registered and registered.sample:
        raise VisdivError(
            f"{dataset} is scored from a sample, which one process embeds; to embed all of it, "
            f"take `sample` out of its settings"
        )
    embedder = load_embedder(settings.embedder_of(dataset), decoding_of(settings, dataset))
    return project, dataset, open_source(source), embedder
