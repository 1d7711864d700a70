"""How many CPUs this process may use. Not here: what to do with them."""

import contextlib
import os
from pathlib import Path


def usable_cpus() -> int:
    """CPUs that the process can keep busy, at least 1.

    Less than the machine has where it is pinned to some of them (`taskset`, cpuset), or in a
    container with a quota of time; half a CPU is left unused rather than fought over.
    """
    cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        cpus = len(os.sched_getaffinity(0))
    return max(1, int(min(cpus, cgroup_quota())))


def cgroup_quota(proc: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> float:
    """CPU time that Linux gives the process's control groups, in CPUs; ∞ where there is no limit.

    Both versions of control groups are read, the process's own group and all above it. Inside a
    container, where those above cannot be seen, its own group is the root of what is mounted.

    Args:
        proc: where the kernel says which groups the process is in.
        mounts: where control groups are mounted.
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
    """The limit of one control group, in CPUs."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        # A group without limit says `max` or -1.
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            granted, period = " ".join((folder / name).read_text() for name in names).split()
            if int(granted) > 0:
                return int(granted) / int(period)
    return float("inf")
