"""The project's definitions, in processes that tell the campaign of their steps."""

import os

from visdiv_assets.definitions import build_defs
from visdiv_assets_tests.campaigns.victim import LISTENER, install

if LISTENER in os.environ:  # else it is only looked at
    install()
defs = build_defs()
