"""Jobs: what is materialised together."""

import dagster as dg

evaluate_dataset = dg.define_asset_job(
    "evaluate_dataset",
    selection=dg.AssetSelection.groups("ingest", "embed", "score"),
    description="Score one dataset end to end: list, embed what is new, add up, score.",
)

analyze_dataset = dg.define_asset_job(
    "analyze_dataset",
    selection=dg.AssetSelection.groups("redundancy", "guidance"),
    description="Say of one scored dataset what it repeats, what leaks, and what would help.",
)

compare_datasets = dg.define_asset_job(
    "compare_datasets",
    selection=dg.AssetSelection.groups("portfolio"),
    description="Put all datasets beside each other: leaderboard, best mixture, drift.",
)
