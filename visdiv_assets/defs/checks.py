"""Asset checks on scores and redundancy, a partition per dataset.

Here: turning verdicts into Dagster's check results. Not here: the verdicts (`quality/`).
"""

import warnings
from collections.abc import Iterator, Mapping

import dagster as dg

from visdiv_assets.defs.assets.redundancy import benchmark_leakage, near_duplicates
from visdiv_assets.defs.assets.score import diversity_metrics
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import clear_errors
from visdiv_assets.defs.resources import ProjectResource
from visdiv_assets.quality.verdicts import Verdict
from visdiv_assets.workflows.judge import judge_dataset, judge_duplicates_of, judge_leakage_of

CHECKS = {
    "score_above_threshold": "ERROR below the dataset's threshold, WARN below 0.40.",
    "score_drop": "WARN when the score fell out of the dataset's own usual range.",
    "decode_failures": "WARN when over 1 % of the images cannot be embedded, ERROR over 5 %.",
    "flat_images": "WARN when over 1 % of the pictures are one flat colour.",
    "embeddings_valid": "ERROR unless every image has one finite unit vector.",
    "enough_images": "WARN with so few images that the plain score is biased.",
    "not_stale": "ERROR when the last evaluation is more than 26 hours old.",
    "model_unchanged": "WARN when another model made the score than last time.",
    "drift": "WARN when the images have moved from their baseline by more than chance.",
}


NEAR_DUPLICATE_RATE = {
    "near_duplicate_rate": "WARN when more than 5 % of the images (or what the settings say) "
    "repeat others."
}
NO_LEAKAGE = {
    "no_leakage": "ERROR when images are in a benchmark, WARN when that cannot be compared."
}


def _specs(checks: Mapping[str, str], asset: dg.AssetsDefinition) -> list[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        # Partitioned checks are new in Dagster 1.13 and warn that they may change.
        warnings.filterwarnings("ignore", message=".*partitions_def on an AssetCheckSpec")
        return [
            dg.AssetCheckSpec(
                name,
                asset=asset,
                description=description,
                partitions_def=datasets,
            )
            for name, description in checks.items()
        ]


@dg.multi_asset_check(name="diversity_checks", specs=_specs(CHECKS, diversity_metrics))
def diversity_checks(
    context: dg.AssetCheckExecutionContext,
    project: ProjectResource,
) -> Iterator[dg.AssetCheckResult]:
    """Judge the newest evaluation of a dataset."""
    name = context.partition_key
    with clear_errors():
        opened = project.open()
        threshold = opened.settings.dataset(name).threshold
        verdicts = judge_dataset(name, threshold, opened.store, opened.warehouse)
    for check in CHECKS:
        yield check_result(diversity_metrics, check, verdicts[check])


@dg.multi_asset_check(
    name="near_duplicate_checks", specs=_specs(NEAR_DUPLICATE_RATE, near_duplicates)
)
def near_duplicate_checks(
    context: dg.AssetCheckExecutionContext,
    project: ProjectResource,
) -> dg.AssetCheckResult:
    """Judge how much of a dataset only repeats the rest."""
    name = context.partition_key
    with clear_errors():
        opened = project.open()
        warn_rate = opened.settings.dataset(name).near_duplicates.warn_rate
        verdict = judge_duplicates_of(name, warn_rate, opened.warehouse)
    return check_result(near_duplicates, "near_duplicate_rate", verdict)


@dg.multi_asset_check(name="leakage_checks", specs=_specs(NO_LEAKAGE, benchmark_leakage))
def leakage_checks(
    context: dg.AssetCheckExecutionContext,
    project: ProjectResource,
) -> dg.AssetCheckResult:
    """Judge whether images of a dataset are in benchmarks."""
    name = context.partition_key
    with clear_errors():
        opened = project.open()
        threshold = opened.settings.dataset(name).leakage.threshold
        verdict = judge_leakage_of(name, threshold, opened.warehouse)
    return check_result(benchmark_leakage, "no_leakage", verdict)


def check_result(asset: dg.AssetsDefinition, check: str, verdict: Verdict) -> dg.AssetCheckResult:
    """A verdict as Dagster shows it: what was measured, against what, and what to do."""
    return dg.AssetCheckResult(
        asset_key=asset.key,
        check_name=check,
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity(verdict.severity),
        description=verdict.text,
        metadata=dict(verdict.measured),
    )


def stale_check(dataset: str, verdict: Verdict) -> dg.AssetCheckEvaluation:
    """The check `not_stale`, failed between two runs: that there was none is what it tells."""
    return dg.AssetCheckEvaluation(
        asset_key=diversity_metrics.key,
        check_name="not_stale",
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity(verdict.severity),
        description=verdict.text,
        metadata=dict(verdict.measured),
        partition=dataset,
    )
