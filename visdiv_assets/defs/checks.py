"""Asset checks on `diversity_metrics`, a partition per dataset.

Here: turning verdicts into Dagster's check results. Not here: the verdicts (`quality/`).
"""

import warnings
from collections.abc import Iterator

import dagster as dg

from visdiv_assets.defs.assets.score import diversity_metrics
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import clear_errors
from visdiv_assets.defs.resources import SettingsResource, StoreResource, WarehouseResource
from visdiv_assets.judgement import judge_dataset
from visdiv_assets.quality.verdicts import Verdict

CHECKS = {
    "score_above_threshold": "ERROR below the dataset's threshold, WARN below 0.40.",
    "score_drop": "WARN when the score fell out of the dataset's own usual range.",
    "decode_failures": "WARN when over 1 % of the images cannot be embedded, ERROR over 5 %.",
    "embeddings_valid": "ERROR unless every image has one finite unit vector.",
    "enough_images": "WARN with so few images that the plain score is biased.",
    "not_stale": "ERROR when the last evaluation is more than 26 hours old.",
    "model_unchanged": "WARN when another model made the score than last time.",
    "drift": "WARN when the images have moved from their baseline by more than chance.",
}


def _specs() -> list[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        # Partitioned checks are new in Dagster 1.13 and warn that they may change.
        warnings.filterwarnings("ignore", message=".*partitions_def on an AssetCheckSpec")
        return [
            dg.AssetCheckSpec(
                name,
                asset=diversity_metrics,
                description=description,
                partitions_def=datasets,
            )
            for name, description in CHECKS.items()
        ]


@dg.multi_asset_check(name="diversity_checks", specs=_specs())
def diversity_checks(
    context: dg.AssetCheckExecutionContext,
    settings: SettingsResource,
    store: StoreResource,
    warehouse: WarehouseResource,
) -> Iterator[dg.AssetCheckResult]:
    """Judge the newest evaluation of a dataset."""
    name = context.partition_key
    with clear_errors():
        threshold = settings.load().dataset(name).threshold
        verdicts = judge_dataset(name, threshold, store.open(), warehouse.open())
    for check in CHECKS:
        yield check_result(check, verdicts[check])


def check_result(check: str, verdict: Verdict) -> dg.AssetCheckResult:
    """A verdict as Dagster shows it: what was measured, against what, and what to do."""
    return dg.AssetCheckResult(
        asset_key=diversity_metrics.key,
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
