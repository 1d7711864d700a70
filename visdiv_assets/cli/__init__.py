"""The command `visdiv`: arguments, progress, tables, exit codes.

Not here: any work that a command does; that is in `workflows/`.
Start at `main.py`, which lists all commands; each module holds one family of them.
"""

import sys

from visdiv_assets import refuse_windows
from visdiv_assets.errors import VisdivError

# Before anything is imported that is not there.
try:
    refuse_windows()
except VisdivError as error:
    sys.exit(f"error: {error}")
