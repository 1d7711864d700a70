"""The one place where Dagster objects are put together.

Here: `build_defs()`, and `defs`, which Dagster loads. Loading opens nothing and imports no torch.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from visdiv_assets.defs.assets import (
    embed,
    guidance,
    ingest,
    maintenance,
    portfolio,
    redundancy,
    score,
)
from visdiv_assets.defs.checks import diversity_checks, leakage_checks, near_duplicate_checks
from visdiv_assets.defs.jobs import (
    analyze_dataset,
    compare_datasets,
    evaluate_dataset,
    maintain_store,
)
from visdiv_assets.defs.resources import (
    EmbedderResource,
    ProjectResource,
    SettingsResource,
    StoreResource,
    WarehouseResource,
)
from visdiv_assets.defs.schedules import (
    nightly_comparison,
    nightly_reevaluation,
    weekly_maintenance,
)
from visdiv_assets.defs.sensors import (
    alert_sensor,
    dataset_change_sensor,
    dataset_registry_sensor,
    failed_run_sensor,
)
from visdiv_assets.defs.unjudged import unjudged_checks_sensor
from visdiv_assets.defs.workers import dead_run_sensor, watched


def build_defs(
    *,
    resource_overrides: Mapping[str, Any] | None = None,
    executor: dg.ExecutorDefinition = dg.in_process_executor,
) -> dg.Definitions:
    """All definitions, with resources replaced where a deployment or a test wants others.

    Args:
        resource_overrides: by name: `settings`, `store`, `warehouse`, `embedder`. The others
            follow a replaced `settings`.
        executor: by default one process a run, since starting one for each step costs more than
            most steps take.

    Raises:
        ValueError: an override names no resource.
    """
    overrides = dict(resource_overrides or {})
    settings = overrides.pop("settings", None) or SettingsResource(config_path=None)
    resources: dict[str, Any] = {
        "settings": settings,
        "store": StoreResource(settings=settings, root=None),
        "warehouse": WarehouseResource(settings=settings, path=None),
        "embedder": EmbedderResource(settings=settings),
    }
    if unknown := overrides.keys() - resources.keys():
        raise ValueError(f"there is no resource {', '.join(sorted(unknown))}")
    resources |= overrides
    parts = {name: resources[name] for name in ("settings", "store", "warehouse")}
    return dg.Definitions(
        assets=dg.load_assets_from_modules(
            [ingest, embed, score, redundancy, guidance, portfolio, maintenance]
        ),
        asset_checks=[diversity_checks, near_duplicate_checks, leakage_checks],
        jobs=[evaluate_dataset, analyze_dataset, compare_datasets, maintain_store],
        schedules=[nightly_reevaluation, nightly_comparison, weekly_maintenance],
        sensors=[
            dataset_registry_sensor,
            dataset_change_sensor,
            dead_run_sensor,
            failed_run_sensor,
            unjudged_checks_sensor,
            alert_sensor,
        ],
        resources={**resources, "project": ProjectResource(**parts)},
        executor=watched(executor),
    )


defs = build_defs()
