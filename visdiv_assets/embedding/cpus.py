"""The number of CPUs that this process may use. Not here: what to do with them."""

import contextlib
import os
import re
from pathlib import Path

from visdiv_assets.errors import VisdivError


def usable_cpus() -> int:
    """Number of CPUs that the process can keep busy, at least 1.

    It is lower than the machine's if the process is pinned to some CPUs (`taskset`, cpuset), its
    container has a CPU quota, or the variable VISDIV_CPUS says so. Fractions are rounded down, to
    avoid contention.

    Raises:
        VisdivError: VISDIV_CPUS is no number of CPUs.
    """
    cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        cpus = len(os.sched_getaffinity(0))
    if given := os.environ.get("VISDIV_CPUS", ""):
        if not re.fullmatch("[1-9][0-9]{0,5}", given):
            raise VisdivError(f"VISDIV_CPUS is {given!r}; it has to be a number of CPUs, from 1 on")
        cpus = min(cpus, int(given))
    return max(1, int(min(cpus, cgroup_quota())))


def cgroup_quota(proc: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> float:
    """The CPU quota of the process's control groups, in CPUs; ∞ if there is no limit.

    Reads both versions of control groups, for the process's own group and all of its parents.
    Inside a container parents are not visible, and its own group is the root of the mount.

    Args:
        proc: folder in which the kernel lists the process's groups.
        mounts: folder in which control groups are mounted.
    """
    quota = float("inf")
    with contextlib.suppress(OSError):
        for line in (proc / "cgroup").read_text().splitlines():
            number, controllers, group = line.split(":", 2)
            if number != "0" and "cpu" not in controllers.split(","):
                continue
            mount = mounts / controllers if controllers else mounts
            own = mount / group.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(mount):
                    quota = min(quota, _quota(folder))
    return quota


def _quota(folder: Path) -> float:
    """The quota of one control group, in CPUs."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        # A group without a limit contains `max` or -1.
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            granted, period = " ".join((folder / name).read_text() for name in names).split()
            if int(granted) > 0:
                return int(granted) / int(period)
    return float("inf")
