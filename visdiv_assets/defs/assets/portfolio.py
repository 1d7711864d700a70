"""Group `portfolio`: datasets beside each other."""

import dagster as dg

from visdiv_assets.defs.assets.score import diversity_metrics
from visdiv_assets.defs.reporting import (
    clear_errors,
    differences_table,
    drift_table,
    leaderboard_table,
    mixture_table,
    picture,
)
from visdiv_assets.defs.resources import ProjectResource
from visdiv_assets.errors import VisdivError
from visdiv_assets.guidance.comparison import published_scores
from visdiv_assets.report.charts import leaderboard_png
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.spectral.corrected import CorrectedScore
from visdiv_assets.spectral.score import TOO_FEW
from visdiv_assets.workflows.compare import leaderboard
from visdiv_assets.workflows.drift import DatasetDrift, drift_of
from visdiv_assets.workflows.mix import plan_mixture


def _score(fair: CorrectedScore) -> float | str:
    return TOO_FEW if fair.too_few else round(fair.score, 6)


def _interval(fair: CorrectedScore) -> str:
    return TOO_FEW if fair.too_few else f"{fair.low:.3f} to {fair.high:.3f}"


@dg.asset(group_name="portfolio", deps=[diversity_metrics], kinds={"duckdb"})
def dataset_leaderboard(
    project: ProjectResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """All datasets by corrected score, published ones, and differences beyond chance."""
    with clear_errors():
        ranked, differences = leaderboard(project.open().evaluated())
    return dg.MaterializeResult(
        metadata={
            "datasets": len(ranked),
            "leaderboard": leaderboard_table(ranked),
            "scores": picture(leaderboard_png(ranked, published_scores()), "scores"),
            "differences": differences_table(differences),
        }
    )


@dg.asset(group_name="portfolio", deps=[diversity_metrics], kinds={"scipy"})
def mixture_plan(
    project: ProjectResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The weights at which the registered datasets together are most diverse."""
    with clear_errors():
        opened = project.open()
        evaluations = [each for each in opened.evaluated() if each.corrected_score is not None]
        if not evaluations:
            raise VisdivError("no registered dataset has enough evaluated images yet")
        models = [each.model_id for each in evaluations]
        common = max(sorted(set(models)), key=models.count)
        chosen = [each for each in evaluations if each.model_id == common]
        plan = plan_mixture(chosen, opened.store)
    return dg.MaterializeResult(
        metadata={
            "diversity score (corrected)": _score(plan.corrected),
            "95 % interval": _interval(plan.corrected),
            "with equal weights": _score(plan.even),
            "mixture": mixture_table(plan),
            "left out": ", ".join(plan.dropped) or "none",
            "model": common,
        }
    )


@dg.asset(group_name="portfolio", deps=[diversity_metrics], kinds={"numpy"})
def dataset_drift(
    project: ProjectResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """What came to each dataset and went from it, and whether that is of another kind."""
    found: list[DatasetDrift] = []
    problems: list[str] = []
    with clear_errors():
        opened = project.open()
        evaluated = opened.evaluated()
    for each in evaluated:
        try:
            drift = drift_of(each.dataset, opened.store, opened.warehouse)
        except VisdivError as error:
            problems.append(redacted(f"{each.dataset}: {error}"))
            continue
        if drift is not None:
            found.append(drift)
    return dg.MaterializeResult(
        metadata={
            "datasets": len(found),
            "moved more than chance": sum(each.large for each in found),
            "drift": drift_table(found),
            "not compared": "; ".join(problems) or "none",
        }
    )
