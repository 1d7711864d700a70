"""The project's definitions under Dagster's multiprocess executor, as a deployment may run them."""

import dagster as dg

from visdiv_assets.definitions import build_defs

# Forked from a process that has loaded the project, a step starts at once.
FORKSERVER = {"forkserver": {"preload_modules": ["visdiv_assets.definitions"]}}

defs = build_defs(executor=dg.multiprocess_executor.configured({"start_method": FORKSERVER}))
