"""How many CPUs this process may use. Not here: what to do with them."""

import os


def usable_cpus() -> int:
    """CPUs that the process may run on, at least 1; less than the machine has in a container."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
