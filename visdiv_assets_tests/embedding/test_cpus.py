"""How many CPUs a process may use, in and out of containers."""

import os

import pytest

from visdiv_assets.embedding import cpus
from visdiv_assets.embedding.cpus import cgroup_quota, usable_cpus


def quota(tmp_path, groups, limits):
    """The quota where /proc/self/cgroup says `groups` and these files are below /sys/fs/cgroup."""
    (tmp_path / "cgroup").write_text(groups)
    for name, content in limits.items():
        path = tmp_path / "mounts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return cgroup_quota(tmp_path, tmp_path / "mounts")


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/", {}, float("inf")),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000\n"}, 4),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/host/path", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/../elsewhere", {"cpu.max": "300000 100000\n"}, 3),
    ],
)
def test_the_smallest_quota_of_the_groups_above_counts(tmp_path, groups, limits, expected):
    assert quota(tmp_path, groups, limits) == expected


@pytest.mark.parametrize(("microseconds", "expected"), [("250000", 2.5), ("-1", float("inf"))])
def test_a_quota_of_the_first_version_of_control_groups_counts(tmp_path, microseconds, expected):
    groups = "4:memory:/x\n3:cpu,cpuacct:/x\n1:name=systemd:/x\n"
    folder = "cpu,cpuacct/x"
    limits = {
        f"{folder}/cpu.cfs_quota_us": microseconds + "\n",
        f"{folder}/cpu.cfs_period_us": "100000\n",
    }
    assert quota(tmp_path, groups, limits) == expected


@pytest.mark.parametrize("rubbish", ["", "many\n", "1 2 3\n", "100000\n", "5 0\n"])
def test_what_cannot_be_understood_is_no_limit(tmp_path, rubbish):
    assert quota(tmp_path, "0::/", {"cpu.max": rubbish}) == float("inf")


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path):
    assert cgroup_quota(tmp_path / "nowhere", tmp_path) == float("inf")


@pytest.mark.parametrize(
    ("granted", "expected"), [(float("inf"), 8), (100.0, 8), (3.9, 3), (1.5, 1), (0.2, 1)]
)
def test_a_part_of_a_cpu_is_not_fought_over(monkeypatch, granted, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: granted)
    assert usable_cpus() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_process_that_is_pinned_uses_the_cpus_it_is_pinned_to():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [min(before)])
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
