"""The project's definitions, with a model that costs nothing and nights that begin at any minute.

Not here: the soak that loads them (`soak.py`).
"""

import contextlib
import os

from visdiv_assets.settings import model
from visdiv_assets_tests.campaigns.datasets import cheap_model

# In the environment of the service; else this is only looked at.
SOAK = "VISDIV_SOAK"

# Held to the end of the process: what is not held is undone when it is collected.
_for_good = contextlib.ExitStack()

if SOAK in os.environ:
    _for_good.enter_context(cheap_model())
    model.TICK_MINUTES = 1  # before the schedules are made of it

from visdiv_assets.definitions import build_defs  # noqa: E402

defs = build_defs()
