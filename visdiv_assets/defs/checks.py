"""Asset checks on scores and redundancy, a partition per dataset.

Here: turning verdicts into Dagster's check results. Not here: the verdicts (`quality/`).
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,  # Dagster has no public name for it
)

from visdiv_assets.defs.assets.redundancy import benchmark_leakage, near_duplicates
from visdiv_assets.defs.assets.score import diversity_metrics
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.reporting import clear_errors
from visdiv_assets.defs.resources import ProjectResource
from visdiv_assets.errors import VisdivError, counted
from visdiv_assets.quality.verdicts import Verdict
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.warehouse.state.registry import own_evaluations_after
from visdiv_assets.workflows.judge import judge_dataset, judge_duplicates_of, judge_leakage_of
from visdiv_assets.workflows.project import Project

CHECKS = {
    "score_above_threshold": "ERROR below the dataset's threshold, WARN below 0.40.",
    "not_one_image": "WARN when all images are nearly one image, or few images many times.",
    "score_drop": "WARN when the score fell out of the dataset's own usual range.",
    "images_lost": "WARN when the dataset has fewer than half of its usual images.",
    "decode_failures": "WARN when over 1 % of the images cannot be embedded, ERROR over 5 %.",
    "flat_images": "WARN when over 1 % of the pictures are one flat colour.",
    "embeddings_valid": "ERROR unless every image has one finite unit vector.",
    "enough_images": "WARN with so few images that the plain score is biased.",
    "not_stale": "ERROR when the last evaluation is more than 26 hours old.",
    "model_unchanged": "WARN when another model made the score than last time.",
    "drift": "WARN when what came or went is of another kind, by more than chance.",
}


NEAR_DUPLICATE_RATE = {
    "near_duplicate_rate": "WARN when more than 5 % of the images (or what the settings say) "
    "repeat others."
}
NO_LEAKAGE = {
    "no_leakage": "ERROR when images are in a benchmark, WARN when that cannot be compared."
}


# Datasets whose failure is told in one verdict on all of them.
DATASETS_TOLD = 20


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


def _judge_score(name: str, project: Project) -> Mapping[str, Verdict]:
    threshold = project.settings.dataset(name).threshold
    after = 0
    with contextlib.suppress(VisdivError):  # a damaged state makes other ticks red, not checks
        after = own_evaluations_after(project.state, name)
    return judge_dataset(
        name,
        threshold,
        project.store,
        project.warehouse,
        after_evaluation=after,
    )


def _judge_duplicates(name: str, project: Project) -> Mapping[str, Verdict]:
    warn_rate = project.settings.dataset(name).near_duplicates.warn_rate
    return {"near_duplicate_rate": judge_duplicates_of(name, warn_rate, project.warehouse)}


def _judge_leakage(name: str, project: Project) -> Mapping[str, Verdict]:
    threshold = project.settings.dataset(name).leakage.threshold
    return {"no_leakage": judge_leakage_of(name, threshold, project.warehouse)}


Judge = Callable[[str, Project], Mapping[str, Verdict]]
# How the checks of an asset are judged: all at once, by what was found last.
_JUDGES: dict[dg.AssetKey, tuple[Mapping[str, str], Judge]] = {
    diversity_metrics.key: (CHECKS, _judge_score),
    near_duplicates.key: (NEAR_DUPLICATE_RATE, _judge_duplicates),
    benchmark_leakage.key: (NO_LEAKAGE, _judge_leakage),
}


def judge_checks(
    asset: dg.AssetKey, dataset: str, project: ProjectResource
) -> Mapping[str, Verdict]:
    """The verdicts of all checks of an asset on a dataset, by name of the check.

    What cannot be judged gets a verdict that says so. A check that raised would say nothing, and
    count as red until its next run.
    """
    checks, judge = _JUDGES[asset]
    try:
        return judge(dataset, project.open())
    except VisdivError as error:
        told = redacted(f"cannot be judged: {error}")
        return dict.fromkeys(checks, Verdict(passed=False, finding=told, severity="WARN"))


def _checks(name: str, asset: dg.AssetsDefinition, about: str) -> dg.AssetChecksDefinition:
    """The checks of an asset; each can be executed by itself."""
    specs = _specs(_JUDGES[asset.key][0], asset)

    @dg.multi_asset_check(name=name, specs=specs, description=about, can_subset=True)
    def judged(
        context: dg.AssetCheckExecutionContext,
        project: ProjectResource,
    ) -> Iterator[dg.AssetCheckResult | dg.AssetCheckEvaluation | dg.Output[None]]:
        selected = {key.name for key in context.selected_asset_check_keys}
        with clear_errors():
            if context.has_partition_key:
                verdicts = judge_checks(asset.key, context.partition_key, project)
            else:
                verdicts = _judge_all(asset.key, context.instance, project)
        for spec in specs:
            if spec.name not in selected:
                continue
            if context.has_partition_key:
                yield check_result(asset, spec.name, verdicts[spec.name])
            else:  # of a check result, Dagster would look for the partition
                yield _evaluation(asset.key, spec.name, verdicts[spec.name])
                yield dg.Output(None, output_name=spec.get_python_identifier())

    return judged


def _judge_all(
    asset: dg.AssetKey, instance: dg.DagsterInstance, project: ProjectResource
) -> Mapping[str, Verdict]:
    """The checks of an asset on all datasets: what the UI's "Execute all" asks for."""
    known = sorted(instance.get_dynamic_partitions(str(datasets.name)))
    each = {name: judge_checks(asset, name, project) for name in known}
    checks, _ = _JUDGES[asset]
    return {
        check: _of_all({name: found[check] for name, found in each.items()}) for check in checks
    }


def _of_all(verdicts: Mapping[str, Verdict]) -> Verdict:
    """One verdict on many datasets, by name: as bad as the worst."""
    failed = {name: verdict for name, verdict in verdicts.items() if not verdict.passed}
    found = f"{len(verdicts) - len(failed):,} of {counted(len(verdicts), 'dataset')} pass"
    told = [f"{name}: {verdict.text}" for name, verdict in list(failed.items())[:DATASETS_TOLD]]
    if len(failed) > DATASETS_TOLD:
        told.append(f"and {len(failed) - DATASETS_TOLD:,} more")
    return Verdict(
        passed=not failed,
        finding="; ".join([found, *told]),
        severity="ERROR" if any(each.severity == "ERROR" for each in failed.values()) else "WARN",
        measured={"datasets": len(verdicts), "datasets that fail": len(failed)},
    )


diversity_checks = _checks(
    "diversity_checks", diversity_metrics, "Judge the newest evaluation of a dataset."
)
near_duplicate_checks = _checks(
    "near_duplicate_checks", near_duplicates, "Judge how much of a dataset only repeats the rest."
)
leakage_checks = _checks(
    "leakage_checks", benchmark_leakage, "Judge whether images of a dataset are in benchmarks."
)


def _severity(check: str, verdict: Verdict) -> dg.AssetCheckSeverity:
    """How bad a failure is; of a check that passes, how bad one would be.

    Dagster shows that some partition fails in the colour of the newest result, whatever that is.
    """
    if not verdict.passed:
        return dg.AssetCheckSeverity(verdict.severity)
    about = {**CHECKS, **NEAR_DUPLICATE_RATE, **NO_LEAKAGE}[check]
    return dg.AssetCheckSeverity.ERROR if "ERROR" in about else dg.AssetCheckSeverity.WARN


def check_result(asset: dg.AssetsDefinition, check: str, verdict: Verdict) -> dg.AssetCheckResult:
    """A verdict as Dagster shows it: what was measured, against what, and what to do."""
    return dg.AssetCheckResult(
        asset_key=asset.key,
        check_name=check,
        passed=verdict.passed,
        severity=_severity(check, verdict),
        description=verdict.text,
        metadata=dict(verdict.measured),
    )


def evaluation_between_runs(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    check: str,
    dataset: str,
    verdict: Verdict,
) -> dg.AssetCheckEvaluation:
    """A verdict that no run has found, for `instance.report_runless_asset_event`.

    It is about the newest materialization; else Dagster would show the partition without a verdict.
    """
    newest = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset, asset_partitions=[dataset]), limit=1
    ).records
    targets = [
        AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
        for record in newest
    ]
    return _evaluation(asset, check, verdict, dataset, next(iter(targets), None))


def _evaluation(
    asset: dg.AssetKey,
    check: str,
    verdict: Verdict,
    dataset: str | None = None,
    target: AssetCheckEvaluationTargetMaterializationData | None = None,
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=check,
        passed=verdict.passed,
        severity=_severity(check, verdict),
        description=verdict.text,
        metadata=dict(verdict.measured),
        partition=dataset,
        target_materialization_data=target,
    )
