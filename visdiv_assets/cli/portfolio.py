"""The commands about datasets beside each other: `visdiv compare`, `mix`, `slices`, `drift`.

Here: arguments and tables. Not here: what they compute (`workflows/`, modules of the same
names).
"""

import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from visdiv_assets.cli.console import (
    MOST,
    AnyDataset,
    AnyDatasets,
    Config,
    Json,
    clear_errors,
    dataset_called,
    err,
    evaluation_as_json,
    open_project,
    out,
    print_json,
    say,
    visible,
)
from visdiv_assets.errors import VisdivError

if TYPE_CHECKING:
    from visdiv_assets.guidance.drift import Side
    from visdiv_assets.spectral.corrected import CorrectedScore
    from visdiv_assets.warehouse.records import Evaluation
    from visdiv_assets.workflows.drift import DatasetDrift
    from visdiv_assets.workflows.project import Project

commands = typer.Typer()


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv compare                    all registered datasets
  visdiv compare birds cars faces
"""
)
def compare(
    names: AnyDatasets = None,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Rank datasets next to published ones, and show which differences are more than chance."""
    with clear_errors():
        from visdiv_assets.guidance.comparison import published_scores
        from visdiv_assets.workflows.compare import leaderboard

        ranked, differences = leaderboard(_newest(names, open_project(config, *(names or ()))))
    if json_output:
        print_json(
            {
                "datasets": [evaluation_as_json(each) for each in ranked],
                "differences": [asdict(each) for each in differences],
            }
        )
        return
    table = Table(title="Your datasets, by corrected score", title_justify="left")
    table.add_column("dataset", overflow="fold")
    for heading in ("images", "score as it is", "corrected", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for evaluation in ranked:
        low, high = evaluation.corrected_low, evaluation.corrected_high
        table.add_row(
            visible(evaluation.dataset),
            f"{evaluation.n_images:,}",
            f"{evaluation.diversity_score:.3f}",
            _or_few(evaluation.corrected_score),
            "" if low is None else f"{low:.3f}–{high:.3f}",
        )
    out.print(table)
    theirs = Table(title="Published scores, as they are", title_justify="left")
    theirs.add_column("dataset", overflow="fold")
    for heading in ("images", "score as it is"):
        theirs.add_column(heading, justify="right", no_wrap=True)
    for published in published_scores():
        theirs.add_row(published.name, f"{published.n_images:,}", f"{published.score:.3f}")
    out.print(theirs)
    out.print(
        "Published scores are of other kinds of images, and of whole datasets: compare the score "
        "as it is with them, and only if you have about as many images."
    )
    for evaluation in ranked:
        if evaluation.two_readings:
            unit = evaluation.sampling_unit
            say(f"{evaluation.dataset}: {evaluation.two_readings} (judged: by {unit}).")
    for each in differences:
        verdict = "more than chance" if each.sure else "may be chance"
        out.print(
            f"{each.first} scores {_times(each.ratio)} {each.second}: {verdict}", markup=False
        )
    models = {each.model_id for each in ranked}
    if len(models) > 1:
        err.print(
            f"Note: these scores come from {len(models)} different models and cannot be compared."
        )


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv mix birds cars faces
  visdiv mix birds cars faces --budget 100000
  visdiv mix birds cars --most cars=0.5     no more than half of it cars
  visdiv mix birds cars --least cars=0.1    at least a tenth of it cars
"""
)
def mix(
    names: AnyDatasets = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=MOST,
            metavar="N",
            help="Size of the mixture in images; no dataset gives more than it has.",
        ),
    ] = None,
    most: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARE", help="Largest share of a dataset, from 0 to 1; repeatable."
        ),
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARE", help="Smallest share of a dataset, from 0 to 1; repeatable."
        ),
    ] = None,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Find the mixture of datasets with the highest corrected score."""
    largest, smallest = _shares(most), _shares(least)
    with clear_errors():
        from visdiv_assets.workflows.mix import plan_mixture

        project = open_project(config, *(names or ()))
        evaluations = _newest(names, project)
        with err.status("searching") as status:
            plan = plan_mixture(
                evaluations,
                project.store,
                budget=budget,
                most=largest,
                least=smallest,
                on_found=lambda score: status.update(f"searching; best score so far {score:.3f}"),
            )
    if json_output:
        parts = zip(evaluations, plan.weights.tolist(), plan.adds.tolist(), strict=True)
        print_json(
            {
                **_fair_as_json(plan.corrected),
                "even": _fair_as_json(plan.even),
                "datasets": [
                    {
                        "weight": weight,
                        "n_images_wanted": round(weight * budget) if budget else None,
                        "corrected_score_lost_without": adds,
                        "evaluation": evaluation_as_json(each),
                    }
                    for each, weight, adds in parts
                ],
            }
        )
        return
    table = Table()
    table.add_column("dataset", overflow="fold")
    for heading in ("own score", "weight", "images", "without it"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each, weight, adds in zip(evaluations, plan.weights, plan.adds, strict=True):
        table.add_row(
            visible(each.dataset),
            _or_few(each.corrected_score),
            f"[bold]{weight:.1%}[/]" if weight else "drop",
            f"{weight * budget:,.0f}" if budget else "",
            f"{-adds:+.4f}" if weight and not math.isnan(adds) else "",
        )
    out.print(table)
    out.print(f"The mixture scores {_fair(plan.corrected)}; equal weights, {_fair(plan.even)}.")
    out.print("'without it': change of the score if the others alone were mixed.")


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv slices birds               by folder, or as `slices` in the settings says
"""
)
def slices(name: AnyDataset, json_output: Json = False, config: Config = None) -> None:
    """Show how diverse each part of a dataset is, and what it adds to the whole."""
    with clear_errors():
        from visdiv_assets.workflows.slices import slices_of

        project = open_project(config, name)
        evaluation = dataset_called(name, project).evaluation
        parts = slices_of(evaluation, project.store)
        if not parts and not json_output:
            raise VisdivError(
                f"{name} has only one part; sort its images into folders, or name a "
                "column of its source with slices: {column: NAME}"
            )
    if json_output:
        told = [
            {
                "slice": part.name,
                "n_images": part.n,
                "share": part.share,
                **_fair_as_json(part.corrected),
                "plain_change_if_left_out": part.left_out,
                "plain_change_if_doubled": part.doubled,
            }
            for part in parts
        ]
        print_json({"evaluation": evaluation_as_json(evaluation), "slices": told})
        return
    table = Table()
    table.add_column("slice", overflow="fold")
    for heading in ("images", "share", "its score", "95 %", "left out", "doubled"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in parts:
        fair = part.corrected
        table.add_row(
            visible(part.name).replace("[", "\\["),
            f"{part.n:,}",
            f"{part.share:.1%}",
            "too few" if fair.too_few else f"{fair.score:.3f}",
            "" if fair.too_few else f"{fair.low:.3f}–{fair.high:.3f}",
            _signed(part.left_out),
            _signed(part.doubled),
        )
    out.print(table)
    out.print(
        f"'left out' and 'doubled': how the plain score of the whole changes from "
        f"{evaluation.diversity_score:.4f}. Green where diversity grows."
    )


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv drift birds                since the last other state, and in the long run
  visdiv drift birds --pin          measure from the newest evaluation from now on
  visdiv drift birds --against cars
"""
)
def drift(
    name: AnyDataset,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare with another dataset instead.")
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Make the newest evaluation the baseline.", metavar="")
    ] = False,
    unpin: Annotated[
        bool, typer.Option("--unpin", help="Measure from no fixed evaluation again.", metavar="")
    ] = False,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Tell whether the images that came or went are of another kind, and how far all has moved."""
    with clear_errors():
        from visdiv_assets.workflows.drift import DatasetDrift, drift_between, drift_of

        project = open_project(config, name)
        store, warehouse = project.store, project.warehouse
        if pin and unpin:
            raise VisdivError("use either --pin or --unpin")
        newest = dataset_called(name, project).evaluation
        name = newest.dataset
        if pin:
            warehouse.pin_baseline(name, newest.evaluation_id, datetime.now(UTC))
            told = f"the drift of {name} is measured from {newest.evaluated_at:%Y-%m-%d %H:%M}"
            (err if json_output else out).print(told, markup=False)
            return
        if unpin:
            warehouse.unpin_baseline(name)
            told = f"the drift of {name} is measured from no fixed evaluation"
            (err if json_output else out).print(told, markup=False)
            return
        if against is None:
            found = drift_of(name, store, warehouse)
        else:
            other = dataset_called(against, project).evaluation
            found = DatasetDrift(newest, ((other, drift_between(other, newest, store)),))
    if json_output:
        print_json({"dataset": name, "drift": None if found is None else _drift_as_json(found)})
        return
    if found is None:
        out.print(f"{name} has no earlier evaluation of the same model", markup=False)
        return
    for before, measured in found.measured:
        since = f"{before.dataset} of {before.evaluated_at:%Y-%m-%d %H:%M}"
        finding = measured.finding(found.comparisons)
        out.print(f"{name} against {since} (UTC): {finding}", markup=False)
        angles = ", ".join(f"{angle:.0f}°" for angle in measured.angles)
        about = "" if measured.exact else "about "
        for what, value in (
            ("images that came", f"{about}{measured.came.images:,}{_p(measured.came)}"),
            ("images that went", f"{about}{measured.went.images:,}{_p(measured.went)}"),
            ("images that stayed", f"{about}{measured.stayed:,}"),
            ("distance of the means", f"{measured.centroid:.4f}"),
            ("squared Fréchet distance", f"{measured.frechet:.4f}"),
            ("angles between leading subspaces", angles),
        ):
            out.print(f"  {what:<33} {value}")
    out.print(found.finding, style="bold")


def _p(side: "Side") -> str:
    return "" if side.p is None else f" (p = {side.p:.3f})"


def _shares(given: list[str] | None) -> dict[str, float]:
    """What NAME=SHARE says, as often as it was given."""
    shares = {}
    for text in given or ():
        name, _, number = text.rpartition("=")
        try:
            shares[name] = float(number)
        except ValueError:
            shares[name] = float("nan")
        if not name or not 0 <= shares[name] <= 1:
            raise typer.BadParameter(f"a share is NAME=SHARE with 0 to 1, as cars=0.5; got {text}")
    return shares


def _times(ratio: float) -> str:
    if ratio < 2:
        return f"{ratio - 1:.1%} above"
    return f"{ratio:,.1f} times" if ratio < 1000 else "far above"


def _or_few(score: float | None) -> str:
    return "too few" if score is None else f"{score:.3f}"


def _fair(score: "CorrectedScore") -> str:
    if score.too_few:
        return "too few images to tell"
    return f"{score.score:.3f} ({score.low:.3f} to {score.high:.3f})"


def _fair_as_json(score: "CorrectedScore") -> dict[str, object]:
    """NaN, where too few images tell, becomes null."""
    return {
        "corrected_score": score.score,
        "corrected_low": score.low,
        "corrected_high": score.high,
    }


def _drift_as_json(found: "DatasetDrift") -> dict[str, object]:
    return {
        "now": evaluation_as_json(found.now),
        "more_than_chance": found.large,
        "finding": found.finding,
        "comparisons": [
            {
                "before": evaluation_as_json(before),
                "came": asdict(drift.came),
                "went": asdict(drift.went),
                "stayed": drift.stayed,
                "exact": drift.exact,
                "p": drift.p,
                "centroid_distance": drift.centroid,
                "squared_frechet_distance": drift.frechet,
                "angles": drift.angles.tolist(),
            }
            for before, drift in found.measured
        ],
    }


def _signed(change: float) -> str:
    if change != change:  # NaN: nothing would be left
        return ""
    colour = "green" if change > 0 else "red"
    return f"[{colour}]{change:+.4f}[/]"


def _newest(names: list[str] | None, project: "Project") -> "list[Evaluation]":
    """The newest evaluations of those named, or of all that are registered."""
    if names:
        called = [dataset_called(name, project).evaluation for name in names]
        return list({each.dataset: each for each in called}.values())
    evaluated = project.evaluated()
    if not evaluated:
        raise VisdivError("no registered dataset has ever been evaluated; run `visdiv score`")
    return evaluated
