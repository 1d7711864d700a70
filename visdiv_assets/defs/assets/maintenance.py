"""Group `maintenance`: keeping the store small."""

from datetime import UTC, datetime

import dagster as dg

from visdiv_assets.defs.reporting import clear_errors
from visdiv_assets.defs.resources import ProjectResource
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.workflows.maintenance import clean_up, compact_store

PROBLEMS_TOLD = 20


@dg.asset(group_name="maintenance", kinds={"filesystem"})
def store_maintenance(
    context: dg.AssetExecutionContext, project: ProjectResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Removes what no kept evaluation needs, and joins small segments; scores and history stay."""
    with clear_errors():
        opened, now = project.open(), datetime.now(UTC)
        done = clean_up(opened, now, apply=True)
        joined = compact_store(opened, now, apply=True)
    problems = list(dict.fromkeys([*done.problems, *joined.problems]))
    for problem in problems[:PROBLEMS_TOLD]:
        context.log.warning(redacted(problem))
    return dg.MaterializeResult(
        metadata={
            "bytes before": done.before,
            "bytes after": done.after,
            "files removed": len(done.plan.remove),
            "segments set aside": len(done.plan.hide),
            "segments brought back": len(done.plan.restore),
            "segments joined": joined.plan.n_segments,
            "problems": len(problems),
        }
    )
