"""The project's definitions under Dagster's multiprocess executor, as a deployment may run them.

`main()` evaluates the datasets that are named on the command line, each in a run of its own, all
at once.
"""

import os
import sys

import dagster as dg

from visdiv_assets.definitions import build_defs

# Forked from a process that has loaded the project, a step starts at once.
PRELOADED = ["visdiv_assets_tests.multiprocess_definitions"]
FORKSERVER = {"forkserver": {"preload_modules": PRELOADED}}

defs = build_defs(executor=dg.multiprocess_executor.configured({"start_method": FORKSERVER}))


def evaluate_job() -> dg.JobDefinition:
    """The job that scores one dataset, for `dg.reconstructable`."""
    return defs.resolve_job_def("evaluate_dataset")


def run_one(name: str) -> bool:
    """Whether a run of one dataset succeeds."""
    tags = {"dagster/partition": name}
    with (
        dg.DagsterInstance.get() as instance,
        dg.execute_job(dg.reconstructable(evaluate_job), instance, tags=tags) as result,
    ):
        return result.success


def main() -> None:
    """A process for each run, forked from this one, which has loaded the project."""
    children = []
    for name in sys.argv[1:]:
        child = os.fork()
        if not child:
            os._exit(0 if run_one(name) else 1)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(codes))
