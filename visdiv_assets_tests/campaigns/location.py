"""The project's definitions, in processes that tell the campaign of their steps."""

from visdiv_assets.definitions import build_defs
from visdiv_assets_tests.campaigns.victim import install

install()
defs = build_defs()
