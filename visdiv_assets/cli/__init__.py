"""The command `visdiv`: arguments, progress, tables, exit codes.

Not here: any work that a command does; that is in `workflows/`.
Start at `main.py`, which lists all commands; each module holds one family of them.
"""

import os
import sys
from collections.abc import Sequence

from visdiv_assets import refuse_windows
from visdiv_assets.errors import VisdivError


def _trusted(path: Sequence[str], argument: str, pythonpath: str) -> list[str]:
    """The folders of `sys.path` without the current one, in which a `json.py` of yours may lie.

    Python puts it there for `python -m`, whose first argument is "-m" until the module is found,
    and for an empty or relative entry of PYTHONPATH, as `$PYTHONPATH:/x` often has. A folder that
    PYTHONPATH names in full stays.
    """
    named = pythonpath.split(os.pathsep) if pythonpath else []
    relative = {os.path.abspath(each) for each in named if not os.path.isabs(each)}  # noqa: PTH100, PTH117
    kept = path[1:] if argument == "-m" and not sys.flags.safe_path else path
    return [each for each in kept if each in named or each not in relative]


sys.path[:] = _trusted(sys.path, sys.argv[0], os.environ.get("PYTHONPATH", ""))

# Before anything is imported that is not there.
try:
    refuse_windows()
except VisdivError as error:
    sys.exit(f"error: {error}")
