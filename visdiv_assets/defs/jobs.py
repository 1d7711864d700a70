"""Jobs: what is materialised together."""

import dagster as dg

evaluate_dataset = dg.define_asset_job(
    "evaluate_dataset",
    selection=dg.AssetSelection.groups("ingest", "embed", "score"),
    description="Score a dataset: list its images, embed the new ones, add up moments, score.",
)

analyze_dataset = dg.define_asset_job(
    "analyze_dataset",
    selection=dg.AssetSelection.groups("redundancy", "guidance"),
    description="Analyse a scored dataset: duplicates, leakage, core-set, axes, augmentations.",
)

compare_datasets = dg.define_asset_job(
    "compare_datasets",
    selection=dg.AssetSelection.groups("portfolio"),
    description="Compare all datasets: leaderboard, best mixture, drift.",
)

maintain_store = dg.define_asset_job(
    "maintain_store",
    selection=dg.AssetSelection.groups("maintenance"),
    description="Clean up the store: remove what no evaluation needs that is kept.",
)
