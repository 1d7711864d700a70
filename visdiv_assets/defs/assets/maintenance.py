"""Group `maintenance`: keeping the store small."""

from datetime import UTC, datetime

import dagster as dg

from visdiv_assets.defs.reporting import clear_errors
from visdiv_assets.defs.resources import ProjectResource
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.workflows.maintenance import clean_up

PROBLEMS_TOLD = 20


@dg.asset(group_name="maintenance", kinds={"filesystem"})
def store_maintenance(
    context: dg.AssetExecutionContext, project: ProjectResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Removes what no evaluation needs that is kept; scores and history stay."""
    with clear_errors():
        done = clean_up(project.open(), datetime.now(UTC), apply=True)
    for problem in done.problems[:PROBLEMS_TOLD]:
        context.log.warning(redacted(problem))
    return dg.MaterializeResult(
        metadata={
            "bytes before": done.before,
            "bytes after": done.after,
            "files removed": len(done.plan.remove),
            "segments set aside": len(done.plan.hide),
            "segments brought back": len(done.plan.restore),
            "problems": len(done.problems),
        }
    )
